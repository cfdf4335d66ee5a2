// Makes the calls of a conformance suite, and writes what became of them.
//
//     node conformance.js ADDRESS SUITE RESULTS
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const protoLoader = require("@grpc/proto-loader");
const { call, connect, stream, violations } = require("./client.js");

const ROOT = path.join(__dirname, "..", "..", "..");
const definition = protoLoader.loadSync("conformance.proto", {
  includeDirs: [path.join(ROOT, "proto"), path.join(ROOT, "tests", "conformance")],
  keepCase: true,
  longs: String,
  oneofs: true, // makes `case.call` the name of the call that is there
});
const { deserialize } = definition["pkpo.conformance.v1.Suite"];
const { serialize } = definition["pkpo.conformance.v1.Results"];

async function outcome(client, suiteCase) {
  try {
    switch (suiteCase.call) {
      case "transform": return { transform: await call(client, "Transform", suiteCase.transform) };
      case "estimate": return { estimate: await call(client, "Estimate", suiteCase.estimate) };
      case "stream": return { stream: { responses: await stream(client, suiteCase.stream.requests ?? []) } };
    }
  } catch (error) {
    if (error.metadata === undefined) throw error; // no answer of a server
    return { refusal: { code: error.code, fields: violations(error).map(({ field }) => field) } };
  }
}

async function main(address, suite, results) {
  const client = connect(address);
  const made = [];
  for (const suiteCase of deserialize(fs.readFileSync(suite)).cases) {
    if (suiteCase.call === "encoded_transform") continue; // grpc-js sends messages, not bytes
    made.push({ name: suiteCase.name, outcome: await outcome(client, suiteCase) });
  }
  fs.writeFileSync(results, serialize({ results: made }));
  client.close();
}

main(...process.argv.slice(2));
