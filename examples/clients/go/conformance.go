package main

import (
	"context"
	"io"
	"io/ioutil"
	"time"

	"github.com/golang/protobuf/proto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	suite "pkpo/conformance/v1"
	pb "pkpo/v1"
)

// answerSuite makes each call of a conformance suite and writes down what became of it;
// `python -m conformance judge` compares.
func answerSuite(pkpo pb.RewardTransformServiceClient, suitePath, resultsPath string) error {
	encoded, err := ioutil.ReadFile(suitePath)
	if err != nil {
		return err
	}
	var cases suite.Suite
	if err := proto.Unmarshal(encoded, &cases); err != nil {
		return err
	}
	var results suite.Results
	for _, each := range cases.Cases {
		if _, raw := each.Call.(*suite.Case_EncodedTransform); raw {
			continue // bytes that stubs do not write
		}
		results.Results = append(results.Results, &suite.Result{Name: each.Name, Outcome: outcome(pkpo, each)})
	}
	if encoded, err = proto.Marshal(&results); err != nil {
		return err
	}
	return ioutil.WriteFile(resultsPath, encoded, 0o644)
}

func outcome(pkpo pb.RewardTransformServiceClient, of *suite.Case) *suite.Outcome {
	call, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var answer suite.Outcome
	var err error
	switch made := of.Call.(type) {
	case *suite.Case_Transform:
		var response *pb.TransformResponse
		response, err = pkpo.Transform(call, made.Transform)
		answer.Result = &suite.Outcome_Transform{Transform: response}
	case *suite.Case_Estimate:
		var response *pb.EstimateResponse
		response, err = pkpo.Estimate(call, made.Estimate)
		answer.Result = &suite.Outcome_Estimate{Estimate: response}
	case *suite.Case_Stream:
		var responses []*pb.TransformStreamResponse
		responses, err = streamed(call, pkpo, made.Stream.Requests)
		answer.Result = &suite.Outcome_Stream{Stream: &suite.Answers{Responses: responses}}
	}
	if err != nil {
		answer.Result = &suite.Outcome_Refusal{Refusal: refusal(status.Convert(err))}
	}
	return &answer
}

func streamed(
	call context.Context, pkpo pb.RewardTransformServiceClient, requests []*pb.TransformStreamRequest,
) ([]*pb.TransformStreamResponse, error) {
	stream, err := pkpo.TransformStream(call)
	if err != nil {
		return nil, err
	}
	go func() {
		for _, request := range requests {
			if stream.Send(request) != nil {
				return // Recv says why
			}
		}
		stream.CloseSend()
	}()
	var responses []*pb.TransformStreamResponse
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return responses, nil
		}
		if err != nil {
			return nil, err
		}
		responses = append(responses, response)
	}
}

func refusal(of *status.Status) *suite.Refusal {
	refused := &suite.Refusal{Code: int32(of.Code())}
	for _, detail := range of.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.FieldViolations {
				refused.Fields = append(refused.Fields, violation.Field)
			}
		}
	}
	return refused
}
