// Advantages from a pkpo-server, in C++.
//
//     client ADDRESS                    shows a call, a stream, a refusal and a deadline
//     client ADDRESS SUITE RESULTS      makes the calls of a conformance suite (conformance.cpp)
//
// PKPO_CA names the PEM certificates that sign the server's, for TLS; PKPO_TOKEN is then the caller's token.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "pkpo/v1/reward_transform.grpc.pb.h"

using namespace pkpo::v1;
using namespace std::chrono_literals;

int answer_suite(RewardTransformService::Stub& pkpo, const char* suite, const char* results);

// Calls that are refused for now are made again, after a backoff or when the server says, on each of its addresses in
// turn ("dns:///pkpo-headless:50051"). A stream is made again only as long as nothing of it was answered.
const char* const kServiceConfig = R"({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{
  "name": [{"service": "pkpo.v1.RewardTransformService"}], "waitForReady": true,
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 3,
                  "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]})";

std::shared_ptr<grpc::ChannelCredentials> credentials() {
  const char *ca = std::getenv("PKPO_CA"), *token = std::getenv("PKPO_TOKEN");
  if (!ca) return grpc::InsecureChannelCredentials();
  std::ifstream file(ca);
  grpc::SslCredentialsOptions options;
  options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  auto tls = grpc::SslCredentials(options);
  return token ? grpc::CompositeChannelCredentials(tls, grpc::AccessTokenCredentials(token)) : tls;
}

std::unique_ptr<RewardTransformService::Stub> connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // Only what fits this buffer is sent again; by default, no more than 256 KiB.
  arguments.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, 65 << 20);
  return RewardTransformService::NewStub(grpc::CreateCustomChannel(address, credentials(), arguments));
}

// Two prompts with four samples each, for a loss that sums over the samples of a prompt.
TransformRequest batch(uint32_t k) {
  TransformRequest request;
  for (double reward : {1.0, 0.0, 0.0, 0.0, 0.2, 0.9, 0.4, 0.4})
    request.mutable_groups()->mutable_f64()->add_values(reward);
  request.mutable_groups()->set_group_size(4);
  request.set_variant(VARIANT_SLOO_MINUS_ONE);
  request.add_k(k);
  return request;
}

void print(const std::string& name, const TransformResponse& response) {
  std::cout << name << ":";
  for (double advantage : response.f64().values()) std::cout << " " << advantage;
  std::cout << "\n";
}

// Of one call, with all its retries.
std::unique_ptr<grpc::ClientContext> within(std::chrono::seconds time) {
  auto context = std::make_unique<grpc::ClientContext>();
  context->set_deadline(std::chrono::system_clock::now() + time);
  return context;
}

void require(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(std::to_string(status.error_code()) + ": " + status.error_message());
}

int main(int argc, char** argv) {
  auto pkpo = connect(argc > 1 ? argv[1] : "localhost:50051");
  if (argc == 4) return answer_suite(*pkpo, argv[2], argv[3]);

  TransformResponse response;
  require(pkpo->Transform(within(30s).get(), batch(2), &response));
  print("advantages", response);
  std::map<uint64_t, TransformResponse> answers;  // they come in any order; a bad batch has an error() instead
  while (answers.size() < 3) {  // a message that is written while gRPC makes a stream again may be lost: ask once more
    auto context = within(30s);
    auto stream = pkpo->TransformStream(context.get());
    std::thread writer([&, answered = answers] {  // while answers are read: neither waits for the other
      TransformStreamRequest message;
      for (uint32_t k : {1, 2, 4}) {
        message.set_sequence(k);
        *message.mutable_request() = batch(k);
        if (!answered.count(k)) stream->Write(message);
      }
      stream->WritesDone();
    });
    for (TransformStreamResponse answer; stream->Read(&answer);) answers[answer.sequence()] = answer.response();
    writer.join();
    require(stream->Finish());
  }
  for (const auto& [sequence, answer] : answers) print("stream " + std::to_string(sequence), answer);

  const grpc::Status refused = pkpo->Transform(within(30s).get(), batch(5), &response);  // k = 5 of 4 samples
  google::rpc::Status details;
  details.ParseFromString(refused.error_details());
  google::rpc::BadRequest bad;
  for (const auto& detail : details.details())
    if (detail.UnpackTo(&bad))
      for (const auto& violation : bad.field_violations())
        std::cout << "refused: " << violation.field() << ": " << violation.description() << "\n";

  const grpc::Status late = pkpo->Transform(within(-1s).get(), batch(2), &response);
  if (late.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) std::cout << "deadline: DEADLINE_EXCEEDED\n";
}
