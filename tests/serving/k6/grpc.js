// burnish.v1 over gRPC, by its own file: answers, and refusals with the status that they should have.
import grpc from "k6/net/grpc";
import { check } from "k6";

export const options = {
  scenarios: { all: { executor: "shared-iterations", vus: 4, iterations: 40, maxDuration: "60s" } },
  thresholds: { checks: ["rate==1"] },
};

const client = new grpc.Client();
client.load([__ENV.PROTOS], "burnish/serving/proto/burnish.proto");
const metadata = { authorization: `Bearer ${__ENV.KEY}` };

export default function () {
  if (__ITER === 0) client.connect(__ENV.ADDRESS, { plaintext: true });
  const sampling = { max_tokens: 5, temperature: 0, ignore_eos: true };
  const request = { model: "tiny", text: "One two", sampling };
  const answer = client.invoke("burnish.v1.Generation/Generate", request, { metadata });
  check(answer, {
    "it is answered": (r) => r.status === grpc.StatusOK && Number(r.message.usage.completionTokens) === 5,
  });
  const unknown = client.invoke("burnish.v1.Generation/Generate", { ...request, model: "none" }, { metadata });
  check(unknown, { "no such model": (r) => r.status === grpc.StatusNotFound });
  const nobody = client.invoke("burnish.v1.Generation/Generate", request);
  check(nobody, { "no key": (r) => r.status === grpc.StatusUnauthenticated });
}
