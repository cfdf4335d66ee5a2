import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.util.*;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import pkpo.v1.RewardTransform.*;
import pkpo.v1.RewardTransformServiceGrpc;

/**
 * Advantages from a pkpo-server: {@code java Client ADDRESS} shows a call, a stream, a refusal and a deadline.
 * PKPO_CA names the PEM certificates that sign the server's, for TLS; PKPO_TOKEN is then the caller's token.
 */
class Client {
  // Calls that are refused for now are made again, after a backoff or when the server says, on each of its addresses
  // in turn ("dns:///pkpo-headless:50051"). A stream is made again only as long as nothing of it was answered.
  static final Map<String, ?> SERVICE_CONFIG = Map.of(
      "loadBalancingConfig", List.of(Map.of("round_robin", Map.of())),
      "methodConfig", List.of(Map.of(
          "name", List.of(Map.of("service", "pkpo.v1.RewardTransformService")), "waitForReady", true,
          "retryPolicy", Map.of(
              "maxAttempts", 5.0, "initialBackoff", "0.1s", "maxBackoff", "5s", "backoffMultiplier", 3.0,
              "retryableStatusCodes", List.of("UNAVAILABLE", "RESOURCE_EXHAUSTED")))));

  static ManagedChannel connect(String address) throws IOException {
    String ca = System.getenv("PKPO_CA"), token = System.getenv("PKPO_TOKEN");
    ChannelCredentials credentials = ca == null
        ? InsecureChannelCredentials.create()
        : TlsChannelCredentials.newBuilder().trustManager(new File(ca)).build();
    Metadata headers = new Metadata();
    if (ca != null && token != null) {
      headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + token);
    }
    return Grpc.newChannelBuilder(address, credentials)
        .defaultServiceConfig(SERVICE_CONFIG)
        .perRpcBufferLimit(65 << 20) // only what fits is sent again; by default, no more than 1 MiB
        .retryBufferSize(256 << 20)
        .maxInboundMessageSize(64 << 20)
        .intercept(MetadataUtils.newAttachHeadersInterceptor(headers))
        .build();
  }

  // Two prompts with four samples each, for a loss that sums over the samples of a prompt.
  static TransformRequest batch(int k) {
    List<Double> rewards = List.of(1.0, 0.0, 0.0, 0.0, 0.2, 0.9, 0.4, 0.4);
    return TransformRequest.newBuilder()
        .setGroups(RewardGroups.newBuilder().setF64(DoubleValues.newBuilder().addAllValues(rewards)).setGroupSize(4))
        .setVariant(Variant.VARIANT_SLOO_MINUS_ONE)
        .addK(k)
        .build();
  }

  // Answers by sequence number. They come in any order; a bad batch has getError() instead.
  static class Answers extends CompletableFuture<Map<Long, TransformResponse>>
      implements StreamObserver<TransformStreamResponse> {
    private final Map<Long, TransformResponse> responses = new TreeMap<>();

    public void onNext(TransformStreamResponse answer) {
      responses.put(answer.getSequence(), answer.getResponse());
    }

    public void onError(Throwable error) {
      completeExceptionally(error);
    }

    public void onCompleted() {
      complete(responses);
    }
  }

  public static void main(String[] args) throws Exception {
    ManagedChannel channel = connect(args.length > 0 ? args[0] : "localhost:50051");
    var pkpo = RewardTransformServiceGrpc.newBlockingStub(channel);

    TransformResponse response = pkpo.withDeadlineAfter(30, TimeUnit.SECONDS).transform(batch(2)); // with all retries
    System.out.println("advantages: " + response.getF64().getValuesList());

    Answers answers = new Answers();
    var many = RewardTransformServiceGrpc.newStub(channel).withDeadlineAfter(30, TimeUnit.SECONDS);
    StreamObserver<TransformStreamRequest> stream = many.transformStream(answers);
    for (int k : List.of(1, 2, 4)) {
      stream.onNext(TransformStreamRequest.newBuilder().setSequence(k).setRequest(batch(k)).build());
    }
    stream.onCompleted();
    answers.get().forEach((k, answer) -> System.out.println("stream " + k + ": " + answer.getF64().getValuesList()));

    try {
      pkpo.withDeadlineAfter(30, TimeUnit.SECONDS).transform(batch(5)); // k = 5 of 4 samples
    } catch (StatusRuntimeException refused) {
      for (Any detail : StatusProto.fromThrowable(refused).getDetailsList()) {
        if (detail.is(BadRequest.class)) {
          for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            System.out.println("refused: " + violation.getField() + ": " + violation.getDescription());
          }
        }
      }
    }

    try {
      pkpo.withDeadlineAfter(0, TimeUnit.SECONDS).transform(batch(2));
    } catch (StatusRuntimeException late) {
      System.out.println("deadline: " + late.getStatus().getCode());
    }
    channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
  }
}
