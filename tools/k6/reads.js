// 200 virtual users read users for 10 s; every answer must be 200.
//   k6 run --no-usage-report tools/k6/reads.js
//   settings: -e URL=http://127.0.0.1:8000 -e FIRST_ID=1 -e COUNT=1000 -e VUS=200 -e DURATION=10s
// The users must exist: `python -m tools load` creates 1 to 1000.
import http from 'k6/http';
import { check } from 'k6';

const url = __ENV.URL || 'http://127.0.0.1:8000';
const firstId = Number(__ENV.FIRST_ID || 1);
const count = Number(__ENV.COUNT || 1000);

export const options = {
  vus: Number(__ENV.VUS || 200),
  duration: __ENV.DURATION || '10s',
  thresholds: {
    checks: ['rate==1.0'],
    http_req_failed: ['rate==0'],
  },
};

export default function () {
  const id = firstId + Math.floor(Math.random() * count);
  // one name for all ids: k6 would otherwise keep statistics for each address
  const response = http.get(`${url}/user/${id}`, { tags: { name: '/user/{id}' } });
  check(response, { 'status was 200': (r) => r.status === 200 });
}
