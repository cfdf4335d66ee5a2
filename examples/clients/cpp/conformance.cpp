// Makes each call of a conformance suite and writes down what became of it; `python -m conformance judge` compares.
#include "conformance.pb.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "pkpo/v1/reward_transform.grpc.pb.h"

using namespace pkpo::v1;
using namespace pkpo::conformance::v1;

namespace {

void set_deadline(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
}

Refusal refusal(const grpc::Status& status) {
  Refusal refusal;
  refusal.set_code(status.error_code());
  google::rpc::Status details;
  details.ParseFromString(status.error_details());
  google::rpc::BadRequest bad;
  for (const auto& detail : details.details())
    if (detail.UnpackTo(&bad))
      for (const auto& violation : bad.field_violations()) refusal.add_fields(violation.field());
  return refusal;
}

grpc::Status stream(RewardTransformService::Stub& pkpo, const Messages& messages, Answers& answers) {
  grpc::ClientContext context;
  set_deadline(context);
  auto stream = pkpo.TransformStream(&context);
  std::thread writer([&] {
    for (const auto& message : messages.requests())
      if (!stream->Write(message)) break;
    stream->WritesDone();
  });
  while (stream->Read(answers.add_responses())) {
  }
  answers.mutable_responses()->RemoveLast();
  writer.join();
  return stream->Finish();
}

grpc::Status call(RewardTransformService::Stub& pkpo, const Case& of, Outcome& outcome) {
  grpc::ClientContext context;
  set_deadline(context);
  if (of.has_transform()) return pkpo.Transform(&context, of.transform(), outcome.mutable_transform());
  if (of.has_estimate()) return pkpo.Estimate(&context, of.estimate(), outcome.mutable_estimate());
  return stream(pkpo, of.stream(), *outcome.mutable_stream());
}

}  // namespace

int answer_suite(RewardTransformService::Stub& pkpo, const char* suite_path, const char* results_path) {
  std::ifstream input(suite_path, std::ios::binary);
  Suite suite;
  if (!suite.ParseFromIstream(&input)) return 1;
  Results results;
  for (const auto& each : suite.cases()) {
    if (each.has_encoded_transform()) continue;  // bytes that stubs do not write
    Result& result = *results.add_results();
    result.set_name(each.name());
    const grpc::Status status = call(pkpo, each, *result.mutable_outcome());
    if (!status.ok()) *result.mutable_outcome()->mutable_refusal() = refusal(status);
  }
  std::ofstream output(results_path, std::ios::binary);
  return results.SerializeToOstream(&output) ? 0 : 1;
}
