// Advantages from a pkpo-server, in Go.
//
//	client ADDRESS                    shows a call, a stream, a refusal and a deadline
//	client ADDRESS SUITE RESULTS      makes the calls of a conformance suite (conformance.go)
//
// PKPO_CA names the PEM certificates that sign the server's, for TLS; PKPO_TOKEN is then the caller's token.
// Before grpc-go 1.40, calls are made again only where the environment says GRPC_GO_RETRY=on.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"golang.org/x/oauth2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/oauth"
	"google.golang.org/grpc/status"

	pb "pkpo/v1"
)

// Calls that are refused for now are made again, after a backoff or when the server says, on each of its addresses in
// turn ("dns:///pkpo-headless:50051"). A stream is made again only as long as nothing of it was answered.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{
  "name": [{"service": "pkpo.v1.RewardTransformService"}], "waitForReady": true,
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 3,
                  "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}`

func connect(address string) (*grpc.ClientConn, error) {
	// Only what fits the buffer is sent again; by default, no more than 256 KiB.
	sizes := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxRetryRPCBufferSize(65<<20))
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig), sizes}
	if os.Getenv("PKPO_CA") == "" {
		return grpc.Dial(address, append(options, grpc.WithInsecure())...)
	}
	tls, err := credentials.NewClientTLSFromFile(os.Getenv("PKPO_CA"), "")
	if err != nil {
		return nil, err
	}
	if token := os.Getenv("PKPO_TOKEN"); token != "" { // sent as `authorization: Bearer ...`, over TLS alone
		options = append(options, grpc.WithPerRPCCredentials(oauth.NewOauthAccess(&oauth2.Token{AccessToken: token})))
	}
	return grpc.Dial(address, append(options, grpc.WithTransportCredentials(tls))...)
}

// Two prompts with four samples each, for a loss that sums over the samples of a prompt.
func batch(k uint32) *pb.TransformRequest {
	return &pb.TransformRequest{
		Groups: &pb.RewardGroups{
			Rewards: &pb.RewardGroups_F64{F64: &pb.DoubleValues{Values: []float64{1, 0, 0, 0, 0.2, 0.9, 0.4, 0.4}}},
			Shape:   &pb.RewardGroups_GroupSize{GroupSize: 4},
		},
		Variant: pb.Variant_VARIANT_SLOO_MINUS_ONE,
		K:       []uint32{k},
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	connection, err := connect(append(os.Args, "localhost:50051")[1]) // by default
	check(err)
	pkpo := pb.NewRewardTransformServiceClient(connection)
	if len(os.Args) == 4 {
		check(answerSuite(pkpo, os.Args[2], os.Args[3]))
		return
	}
	call, cancel := context.WithTimeout(context.Background(), 30*time.Second) // with all retries
	defer cancel()

	response, err := pkpo.Transform(call, batch(2))
	check(err)
	fmt.Println("advantages:", response.GetF64().GetValues())

	stream, err := pkpo.TransformStream(call)
	check(err)
	go func() { // while answers are read: neither waits for the other
		for _, k := range []uint32{1, 2, 4} {
			stream.Send(&pb.TransformStreamRequest{Sequence: uint64(k), Request: batch(k)}) // Recv says what went wrong
		}
		stream.CloseSend()
	}()
	answers := map[uint64]*pb.TransformResponse{} // they come in any order; a bad batch has GetError() instead
	for answer, err := stream.Recv(); err != io.EOF; answer, err = stream.Recv() {
		check(err)
		answers[answer.Sequence] = answer.GetResponse()
	}
	for _, k := range []uint64{1, 2, 4} {
		fmt.Printf("stream %d: %v\n", k, answers[k].GetF64().GetValues())
	}

	_, err = pkpo.Transform(call, batch(5)) // k = 5 of 4 samples
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.FieldViolations {
				fmt.Printf("refused: %s: %s\n", violation.Field, violation.Description)
			}
		}
	}

	late, cancel := context.WithDeadline(call, time.Now())
	defer cancel()
	if _, err = pkpo.Transform(late, batch(2)); status.Code(err) == codes.DeadlineExceeded {
		fmt.Println("deadline: DEADLINE_EXCEEDED")
	}
}
