// The reads of `python -m tools compare`: virtual users read users for some seconds, and give up after a second.
//   k6 run --no-usage-report -e URL=http://127.0.0.1:8000 tools/compare/reads.js
//   settings: -e FIRST_ID=1 -e COUNT=1000 -e VUS=200 -e DURATION=10s -e TIMEOUT=1s
// No thresholds: answers that are late or missing are what the comparison is about, not a reason to fail.
import http from 'k6/http';
import { check } from 'k6';

const url = __ENV.URL || 'http://127.0.0.1:8000';
const firstId = Number(__ENV.FIRST_ID || 1);
const count = Number(__ENV.COUNT || 1000);
const timeout = __ENV.TIMEOUT || '1s';

export const options = {
  vus: Number(__ENV.VUS || 200),
  duration: __ENV.DURATION || '10s',
};

export default function () {
  const id = firstId + Math.floor(Math.random() * count);
  const response = http.get(`${url}/user/${id}`, { timeout, tags: { name: '/user/{id}' } });
  check(response, { 'status was 200': (r) => r.status === 200 });
}
