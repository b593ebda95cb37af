// The POST work: 1,000 users, 1,000 products, then 5,500 orders, each phase shared by 10 virtual users.
//   k6 run --no-usage-report tools/k6/posts.js
//   settings: -e URL=http://127.0.0.1:8000 -e FIRST_ID=1 -e USERS=1000 -e PRODUCTS=1000 -e ORDERS=5500 -e VUS=10
// The server must have none of these ids; another FIRST_ID makes a second run possible.
import http from 'k6/http';
import exec from 'k6/execution';
import { check } from 'k6';

const url = __ENV.URL || 'http://127.0.0.1:8000';
const firstId = Number(__ENV.FIRST_ID || 1);
const users = Number(__ENV.USERS || 1000);
const products = Number(__ENV.PRODUCTS || 1000);
const orders = Number(__ENV.ORDERS || 5500);
const vus = Number(__ENV.VUS || 10);

// k6 starts scenarios by the clock, not one after the other, so one scenario walks through all three phases:
// iteration n is user n, or product n - users, or an order. An order names records of at least 1,000 iterations ago
// (with the default numbers), which no virtual user can still be busy with.
export const options = {
  scenarios: {
    work: { executor: 'shared-iterations', vus, iterations: users + products + orders, maxDuration: '10m' },
  },
  thresholds: {
    checks: ['rate==1.0'],
  },
};

function post(path, body) {
  return http.post(`${url}${path}`, JSON.stringify(body), { headers: { 'Content-Type': 'application/json' } });
}

function placeOrder(number) {
  return post('/order', {
    command: 'place order',
    product_id: firstId + (number % products),
    user_id: firstId + (number % users),
    quantity: 1,
  });
}

export default function () {
  const n = exec.scenario.iterationInTest;
  let response;
  if (n < users) {
    const id = firstId + n;
    response = post('/user', { command: 'create', id, username: `user-${id}`, email: `user-${id}@example.com` });
  } else if (n < users + products) {
    const id = firstId + n - users;
    const stock = 1 + Math.ceil(orders / products);
    response = post('/product', {
      command: 'create', id, name: `product-${id}`, description: 'a product', price: 9.5, quantity: stock,
    });
  } else {
    response = placeOrder(n - users - products);
  }
  check(response, { 'status was 200': (r) => r.status === 200 });
}
