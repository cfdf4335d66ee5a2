// Advantages from a pkpo-server, in Node.
//
//     npm install
//     node client.js ADDRESS      shows a call, a stream, a refusal and a deadline
//
// PKPO_CA names the PEM certificates that sign the server's, for TLS; PKPO_TOKEN is then the caller's token.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const ROOT = path.join(__dirname, "..", "..", "..");
// Doubles are numbers here, bit for bit. 64 bits are more than a number holds: seed, first_group and sequence are strings.
const definition = protoLoader.loadSync(
  ["pkpo/v1/reward_transform.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"],
  { includeDirs: [path.join(ROOT, "proto"), path.join(__dirname, "..", "protos")], keepCase: true, longs: String },
);
const { pkpo } = grpc.loadPackageDefinition(definition);
const { VARIANT_SLOO_MINUS_ONE } = Object.fromEntries(
  definition["pkpo.v1.Variant"].type.value.map(({ name, number }) => [name, number]),
);

// Calls that are refused for now are made again, after a backoff or when the server says, on each of its addresses in
// turn ("dns:///pkpo-headless:50051"). A stream is made again only as long as nothing of it was answered.
const SERVICE_CONFIG = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [{
    name: [{ service: "pkpo.v1.RewardTransformService" }],
    retryPolicy: {
      maxAttempts: 5, initialBackoff: "0.1s", maxBackoff: "5s", backoffMultiplier: 3,
      retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    },
  }],
};

function credentials() {
  const { PKPO_CA, PKPO_TOKEN } = process.env;
  if (!PKPO_CA) return grpc.credentials.createInsecure();
  const tls = grpc.credentials.createSsl(fs.readFileSync(PKPO_CA));
  if (!PKPO_TOKEN) return tls;
  const token = new grpc.Metadata();
  token.set("authorization", `Bearer ${PKPO_TOKEN}`);
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => done(null, token));
  return grpc.credentials.combineChannelCredentials(tls, bearer);
}

function connect(address) {
  return new pkpo.v1.RewardTransformService(address, credentials(), {
    "grpc.service_config": JSON.stringify(SERVICE_CONFIG),
    "grpc.max_receive_message_length": 64 * 2 ** 20,
    // Only what fits these buffers is sent again; by default, 1 MiB of a call and 16 MiB of all that are open.
    "grpc.per_rpc_retry_buffer_size": 65 * 2 ** 20,
    "grpc.retry_buffer_size": 8 * 65 * 2 ** 20,
  });
}

// Makes a call wait for a server that is starting; grpc-js does not heed the service config's waitForReady.
const waiting = () => new grpc.Metadata({ waitForReady: true });

// A unary call, its retries included, within 30 s. Fails with a grpc.ServiceError.
function call(client, method, request, deadline = Date.now() + 30_000) {
  return promisify(client[method]).call(client, request, waiting(), { deadline });
}

// All requests on one call. The answers come in any order; a bad request has an `error` where others have a `response`.
async function stream(client, requests) {
  const open = client.TransformStream(waiting(), { deadline: Date.now() + 30_000 });
  requests.forEach((request) => open.write(request));
  open.end();
  const answers = [];
  for await (const answer of open) answers.push(answer);
  return answers;
}

// What a refused request did wrong: the field and the bound, from google.rpc.BadRequest.
function violations(error) {
  const decode = (type, bytes) => definition[`google.rpc.${type}`].deserialize(bytes);
  return error.metadata.get("grpc-status-details-bin")
    .flatMap((bytes) => decode("Status", bytes).details ?? [])
    .filter((detail) => detail.type_url.endsWith("/google.rpc.BadRequest"))
    .flatMap((detail) => decode("BadRequest", detail.value).field_violations ?? []);
}

// Two prompts with four samples each, for a loss that sums over the samples of a prompt.
function batch(k) {
  const rewards = { f64: { values: [1, 0, 0, 0, 0.2, 0.9, 0.4, 0.4] }, group_size: 4 };
  return { groups: rewards, variant: VARIANT_SLOO_MINUS_ONE, k: [k] };
}

async function main(address) {
  const client = connect(address);
  const print = (name, response) => console.log(`${name}: ${response.f64.values.join(" ")}`);
  print("advantages", await call(client, "Transform", batch(2)));

  const answers = await stream(client, [1, 2, 4].map((k) => ({ sequence: k, request: batch(k) })));
  answers.sort((a, b) => a.sequence - b.sequence);
  for (const { sequence, response } of answers) print(`stream ${sequence}`, response);

  const refused = await call(client, "Transform", batch(5)).catch((error) => error); // k = 5 of 4 samples
  for (const { field, description } of violations(refused)) console.log(`refused: ${field}: ${description}`);

  const late = await call(client, "Transform", batch(2), Date.now()).catch((error) => error);
  console.log(`deadline: ${grpc.status[late.code]}`);
  client.close();
}

module.exports = { call, connect, stream, violations };
if (require.main === module) main(process.argv[2] ?? "localhost:50051");
