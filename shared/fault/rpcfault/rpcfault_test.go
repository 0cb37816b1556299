package rpcfault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

func TestToConnect_RoundTripsEveryKind(t *testing.T) {
	for k := fault.Internal; k <= fault.Unimplemented; k++ {
		in := fault.New(k, "SOME_REASON", "apply policy p: no").At("spec.pairs[2].to").With("zone", "us")
		ce := rpcfault.ToConnect(fmt.Errorf("do it: %w", in))
		if ce.Code() != rpcfault.Code(k) {
			t.Errorf("%v: got code %v, want %v", k, ce.Code(), rpcfault.Code(k))
		}
		out, ok := fault.As(rpcfault.From(ce))
		if !ok {
			t.Fatalf("%v: From gives no fault", k)
		}
		if out.Kind != k || out.Reason != in.Reason || out.Field != in.Field || out.Meta["zone"] != "us" || len(out.Meta) != 1 {
			t.Errorf("%v: got %+v, want kind, reason, field and meta of %+v", k, out, in)
		}
		want := "do it: apply policy p: no"
		if k == fault.Internal {
			want = "internal error: the server's log says more"
		}
		if out.Error() != want {
			t.Errorf("%v: got message %q, want %q", k, out.Error(), want)
		}
	}
}

func TestToConnect_HidesWhatNobodyClassified(t *testing.T) {
	ce := rpcfault.ToConnect(errors.New("open /secret/path: no"))
	if ce.Code() != connect.CodeInternal || strings.Contains(ce.Error(), "secret") {
		t.Errorf("got %v, want Internal without the text", ce)
	}
	if got := rpcfault.ToConnect(fmt.Errorf("x: %w", context.DeadlineExceeded)).Code(); got != connect.CodeDeadlineExceeded {
		t.Errorf("deadline: got %v", got)
	}
	if got := rpcfault.ToConnect(nil); got != nil {
		t.Errorf("nil: got %v", got)
	}
}

func TestFrom_ReadsBareCodes(t *testing.T) {
	for code, want := range map[connect.Code]fault.Kind{
		connect.CodeResourceExhausted: fault.TooLarge, connect.CodeDeadlineExceeded: fault.Unavailable,
		connect.CodeAlreadyExists: fault.Conflict, connect.CodeUnknown: fault.Internal, connect.CodeUnavailable: fault.Unavailable,
	} {
		if got := fault.KindOf(rpcfault.From(connect.NewError(code, errors.New("x")))); got != want {
			t.Errorf("%v: got %v, want %v", code, got, want)
		}
	}
	if got := rpcfault.From(io.EOF); got != io.EOF {
		t.Errorf("io.EOF: got %v, want it unchanged", got)
	}
	plain := errors.New("plain")
	if got := rpcfault.From(plain); got != plain {
		t.Errorf("plain: got %v, want it unchanged", got)
	}
}

// Through a real server: unary and streaming, both interceptors.
func TestInterceptors_CarryFaultsAcross(t *testing.T) {
	var log strings.Builder
	opts := connect.WithInterceptors(rpcfault.Server(slog.New(slog.NewTextHandler(&log, nil))))
	boom := func(in string) error {
		switch in {
		case "zone":
			return fault.New(fault.WrongZone, "WRONG_ZONE", "customer c rests in zone us").With("admin_urls", "https://a")
		case "plain":
			return errors.New("disk on fire")
		}
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("/t.S/U", connect.NewUnaryHandler("/t.S/U", func(_ context.Context, r *connect.Request[wrapperspb.StringValue]) (*connect.Response[emptypb.Empty], error) {
		if err := boom(r.Msg.Value); err != nil {
			return nil, err
		}
		return connect.NewResponse(&emptypb.Empty{}), nil
	}, opts))
	mux.Handle("/t.S/S", connect.NewServerStreamHandler("/t.S/S", func(_ context.Context, r *connect.Request[wrapperspb.StringValue], s *connect.ServerStream[emptypb.Empty]) error {
		if err := s.Send(&emptypb.Empty{}); err != nil {
			return err
		}
		return boom(r.Msg.Value)
	}, opts))
	srv := httptest.NewServer(mux)
	defer srv.Close()
	co := connect.WithInterceptors(rpcfault.Client())
	unary := connect.NewClient[wrapperspb.StringValue, emptypb.Empty](srv.Client(), srv.URL+"/t.S/U", co)
	stream := connect.NewClient[wrapperspb.StringValue, emptypb.Empty](srv.Client(), srv.URL+"/t.S/S", co)

	calls := map[string]func(in string) error{
		"unary": func(in string) error {
			_, err := unary.CallUnary(t.Context(), connect.NewRequest(wrapperspb.String(in)))
			return err
		},
		"stream": func(in string) error {
			s, err := stream.CallServerStream(t.Context(), connect.NewRequest(wrapperspb.String(in)))
			if err != nil {
				return err
			}
			defer s.Close()
			n := 0
			for s.Receive() {
				n++
			}
			if n != 1 {
				return fmt.Errorf("received %d messages, want 1", n)
			}
			return s.Err()
		},
	}
	for name, call := range calls {
		log.Reset()
		f, ok := fault.As(call("zone"))
		if !ok || f.Kind != fault.WrongZone || f.Reason != "WRONG_ZONE" || f.Meta["admin_urls"] != "https://a" {
			t.Errorf("%s: got %#v, want the WrongZone fault with admin_urls", name, f)
		}
		if log.Len() > 0 {
			t.Errorf("%s: the caller's fault was logged: %s", name, log.String())
		}
		err := call("plain")
		if fault.KindOf(err) != fault.Internal || strings.Contains(err.Error(), "fire") {
			t.Errorf("%s: got %v, want Internal without the text", name, err)
		}
		if got := strings.Count(log.String(), "disk on fire"); got != 1 {
			t.Errorf("%s: logged %d times, want 1", name, got)
		}
		if err := call("fine"); err != nil {
			t.Errorf("%s: got %v, want nil", name, err)
		}
	}
	srv.Close()
	if err := calls["unary"]("fine"); fault.KindOf(err) != fault.Unavailable || fault.ReasonOf(err) != rpcfault.ReasonNoAnswer {
		t.Errorf("server gone: got %v (%s), want Unavailable %s", err, fault.ReasonOf(err), rpcfault.ReasonNoAnswer)
	}
}
