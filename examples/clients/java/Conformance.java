import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import pkpo.conformance.v1.Conformance.*;
import pkpo.v1.RewardTransform.*;
import pkpo.v1.RewardTransformServiceGrpc;

/**
 * {@code java Conformance ADDRESS SUITE RESULTS} makes each call of a conformance suite and writes down what became of
 * it; {@code python -m conformance judge} compares.
 */
class Conformance {
  public static void main(String[] args) throws Exception {
    ManagedChannel channel = Client.connect(args[0]);
    Results.Builder results = Results.newBuilder();
    for (Case each : Suite.parseFrom(Files.readAllBytes(Path.of(args[1]))).getCasesList()) {
      if (!each.hasEncodedTransform()) { // bytes that stubs do not write
        results.addResults(Result.newBuilder().setName(each.getName()).setOutcome(outcome(channel, each)));
      }
    }
    Files.write(Path.of(args[2]), results.build().toByteArray());
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
  }

  static Outcome outcome(ManagedChannel channel, Case of) throws Exception {
    var pkpo = RewardTransformServiceGrpc.newFutureStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS);
    try {
      if (of.hasTransform()) {
        return Outcome.newBuilder().setTransform(pkpo.transform(of.getTransform()).get()).build();
      }
      if (of.hasEstimate()) {
        return Outcome.newBuilder().setEstimate(pkpo.estimate(of.getEstimate()).get()).build();
      }
      return Outcome.newBuilder().setStream(streamed(channel, of.getStream())).build();
    } catch (ExecutionException error) {
      return Outcome.newBuilder().setRefusal(refusal(error.getCause())).build();
    }
  }

  static Answers streamed(ManagedChannel channel, Messages messages) throws Exception {
    CompletableFuture<Answers> answered = new CompletableFuture<>();
    var pkpo = RewardTransformServiceGrpc.newStub(channel).withDeadlineAfter(60, TimeUnit.SECONDS);
    StreamObserver<TransformStreamRequest> stream =
        pkpo.transformStream(
            new StreamObserver<>() {
              final Answers.Builder answers = Answers.newBuilder();

              public void onNext(TransformStreamResponse answer) {
                answers.addResponses(answer);
              }

              public void onError(Throwable error) {
                answered.completeExceptionally(error);
              }

              public void onCompleted() {
                answered.complete(answers.build());
              }
            });
    messages.getRequestsList().forEach(stream::onNext);
    stream.onCompleted();
    return answered.get();
  }

  static Refusal refusal(Throwable error) throws InvalidProtocolBufferException {
    Refusal.Builder refusal = Refusal.newBuilder().setCode(Status.fromThrowable(error).getCode().value());
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(BadRequest.class)) {
        detail.unpack(BadRequest.class).getFieldViolationsList().forEach(each -> refusal.addFields(each.getField()));
      }
    }
    return refusal.build();
  }
}
