// Chats and completions over HTTP, some as streams, some refused: each is answered as it should be.
import http from "k6/http";
import { check } from "k6";

export const options = {
  scenarios: { all: { executor: "shared-iterations", vus: 8, iterations: 80, maxDuration: "60s" } },
  thresholds: {
    checks: ["rate==1"],
    http_req_failed: ["rate<0.3"], // a fifth is asked wrongly
    "http_req_duration{kind:refused}": ["max<5000"],
    "checks{kind:stream}": ["rate==1"],
  },
};

const headers = { "Content-Type": "application/json", Authorization: `Bearer ${__ENV.KEY}` };
const chat = { model: "tiny", messages: [{ role: "user", content: "Hi" }], max_tokens: 5, temperature: 0 };

function post(path, body, kind) {
  return http.post(`${__ENV.URL}${path}`, JSON.stringify(body), { headers, tags: { kind } });
}

export default function () {
  switch (__ITER % 5) {
    case 0: {
      const answer = post("/v1/chat/completions", chat, "chat");
      check(answer, { "a chat is answered": (r) => r.status === 200 && r.json("usage.completion_tokens") > 0 });
      break;
    }
    case 1: {
      const answer = post("/v1/completions", { model: "tiny", prompt: "One", max_tokens: 5, n: 3 }, "completion");
      check(answer, { "three are answered": (r) => r.status === 200 && r.json("choices").length === 3 });
      break;
    }
    case 2: {
      const answer = post("/v1/chat/completions", { ...chat, stream: true }, "stream");
      const isWhole = (r) => r.status === 200 && r.body.trim().endsWith("data: [DONE]");
      check(answer, { "a stream ends": isWhole }, { kind: "stream" });
      break;
    }
    case 3: {
      const answer = post("/v1/chat/completions", { ...chat, n: 10000000 }, "refused");
      check(answer, { "too many are refused": (r) => r.status === 400 && r.json("error.param") === "n" });
      break;
    }
    default:
      check(http.get(`${__ENV.URL}/readyz`), { "it is ready": (r) => r.status === 200 });
  }
}
