// 90 % reads of users, 10 % orders.
//   k6 run --no-usage-report tools/k6/mix.js
//   settings: -e URL=http://127.0.0.1:8000 -e FIRST_ID=1 -e COUNT=1000 -e VUS=200 -e DURATION=10s
// The users and products must exist, and there must be stock: setup gives each product one unit for every order that
// could possibly be placed.
import http from 'k6/http';
import exec from 'k6/execution';
import { check } from 'k6';

const url = __ENV.URL || 'http://127.0.0.1:8000';
const firstId = Number(__ENV.FIRST_ID || 1);
const count = Number(__ENV.COUNT || 1000);
const stock = 1000000000;

export const options = {
  vus: Number(__ENV.VUS || 200),
  duration: __ENV.DURATION || '10s',
  thresholds: {
    checks: ['rate==1.0'],
    'http_req_duration{name:/user/{id}}': ['p(99)<1000'],
    'http_req_duration{name:/order}': ['p(99)<2000'],
  },
};

function post(path, body) {
  const headers = { 'Content-Type': 'application/json' };
  return http.post(`${url}${path}`, JSON.stringify(body), { headers, tags: { name: path } });
}

export function setup() {
  for (let id = firstId; id < firstId + count; id += 1) {
    const response = post('/product', { command: 'update', id, quantity: stock });
    if (response.status !== 200) {
      exec.test.abort(`product ${id} can not be stocked: ${response.status} (python -m tools load creates 1 to 1000)`);
    }
  }
}

function randomId() {
  return firstId + Math.floor(Math.random() * count);
}

export default function () {
  const response = exec.vu.iterationInScenario % 10 === 9
    ? post('/order', { command: 'place order', product_id: randomId(), user_id: randomId(), quantity: 1 })
    : http.get(`${url}/user/${randomId()}`, { tags: { name: '/user/{id}' } });
  check(response, { 'status was 200': (r) => r.status === 200 });
}
