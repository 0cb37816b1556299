// Package rpcfault owns the translation between fault.Kind and connect.Code, with one server and one
// client interceptor, so that no RPC door and no caller knows both vocabularies.
//
// It never decides what is an error, and never lets the text of an error nobody classified leave the
// process. It keeps no state: nothing survives a crash, everything may be used at once.
//
// On the wire a fault is a Connect error with a google.rpc.ErrorInfo detail (reason, domain "bailiwick",
// the fault's Meta and its exact kind) and, if it names a field, a google.rpc.BadRequest detail.
package rpcfault

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	"bailiwick/shared/fault"
)

// Domain of our ErrorInfo details: reasons are unique within it.
const Domain = "bailiwick"

// metaKind carries the kind beside the code: several kinds share a code, and a caller branches on the kind.
const metaKind = "kind"

// Reasons given to errors that arrive without one.
const (
	ReasonTooLarge = "TOO_LARGE"
	ReasonDeadline = "DEADLINE_EXCEEDED"
	ReasonCanceled = "CANCELED"
	ReasonNoAnswer = "NO_ANSWER" // the server could not be reached, or spoke something else
	ReasonInternal = "INTERNAL"
)

// internalMessage is all that a stranger is told of an error that is ours to fix.
const internalMessage = "internal error: the server's log says more"

// Code of a kind.
func Code(k fault.Kind) connect.Code {
	switch k {
	case fault.Invalid:
		return connect.CodeInvalidArgument
	case fault.NotFound:
		return connect.CodeNotFound
	case fault.Conflict:
		return connect.CodeAborted
	case fault.Denied:
		return connect.CodePermissionDenied
	case fault.Unauthenticated:
		return connect.CodeUnauthenticated
	case fault.Unavailable:
		return connect.CodeUnavailable
	case fault.TooLarge, fault.Exhausted:
		return connect.CodeResourceExhausted
	case fault.WrongZone:
		return connect.CodeFailedPrecondition
	case fault.Unimplemented:
		return connect.CodeUnimplemented
	}
	return connect.CodeInternal
}

// kindOf is the kind of an error that says no more than its code: one of connect itself, or of a proxy.
func kindOf(c connect.Code) (fault.Kind, string) {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return fault.Invalid, "INVALID"
	case connect.CodeNotFound:
		return fault.NotFound, "NOT_FOUND"
	case connect.CodeAborted, connect.CodeAlreadyExists, connect.CodeFailedPrecondition:
		return fault.Conflict, "CONFLICT"
	case connect.CodePermissionDenied:
		return fault.Denied, "DENIED"
	case connect.CodeUnauthenticated:
		return fault.Unauthenticated, "UNAUTHENTICATED"
	case connect.CodeUnavailable:
		return fault.Unavailable, ReasonNoAnswer
	case connect.CodeDeadlineExceeded:
		return fault.Unavailable, ReasonDeadline
	case connect.CodeCanceled:
		return fault.Unavailable, ReasonCanceled
	case connect.CodeResourceExhausted:
		return fault.TooLarge, ReasonTooLarge // connect's own use: a message over the read limit
	case connect.CodeUnimplemented:
		return fault.Unimplemented, "UNIMPLEMENTED"
	}
	return fault.Internal, ReasonInternal
}

// ToConnect turns any error into a Connect error fit for strangers. An error that is none of ours, and one of
// kind Internal, keeps its reason and loses its text. A Connect error passes unchanged.
func ToConnect(err error) *connect.Error {
	if err == nil {
		return nil
	}
	f, ok := fault.As(err)
	if !ok {
		// A fault outranks what it wraps; only bare errors get here.
		if ce, ok := errors.AsType[*connect.Error](err); ok {
			return ce
		}
		switch {
		case errors.Is(err, context.Canceled):
			return connect.NewError(connect.CodeCanceled, context.Canceled)
		case errors.Is(err, context.DeadlineExceeded):
			return connect.NewError(connect.CodeDeadlineExceeded, context.DeadlineExceeded)
		}
		f = &fault.Error{Kind: fault.Internal, Reason: ReasonInternal}
	}
	message := err.Error() // with what callers wrapped around the fault: it says what was being done
	if f.Kind == fault.Internal {
		message = internalMessage
	}
	ce := connect.NewError(Code(f.Kind), errors.New(message))
	meta := make(map[string]string, len(f.Meta)+1)
	maps.Copy(meta, f.Meta)
	meta[metaKind] = f.Kind.String()
	addDetail(ce, &errdetails.ErrorInfo{Reason: f.Reason, Domain: Domain, Metadata: meta})
	if f.Field != "" {
		addDetail(ce, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: f.Field, Description: message, Reason: f.Reason},
		}})
	}
	return ce
}

func addDetail(ce *connect.Error, msg proto.Message) {
	// Marshalling fails only on text that is not UTF-8: the error is then told without its detail.
	if d, err := connect.NewErrorDetail(msg); err == nil {
		ce.AddDetail(d)
	}
}

// From turns what a Connect client returned into a *fault.Error. nil, io.EOF and errors that are not Connect's
// (a fault already among them) pass unchanged. The result unwraps to the Connect error.
func From(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if _, ok := fault.As(err); ok {
		return err
	}
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	f := &fault.Error{Message: ce.Message(), Err: ce}
	f.Kind, f.Reason = kindOf(ce.Code())
	for _, d := range ce.Details() {
		value, err := d.Value()
		if err != nil {
			continue // a detail of a newer server
		}
		switch v := value.(type) {
		case *errdetails.ErrorInfo:
			if v.GetDomain() != Domain {
				continue
			}
			f.Reason = v.GetReason()
			for k, text := range v.GetMetadata() {
				if k != metaKind {
					if f.Meta == nil {
						f.Meta = map[string]string{}
					}
					f.Meta[k] = text
					continue
				}
				if kind, known := fault.ParseKind(text); known {
					f.Kind = kind
				}
			}
		case *errdetails.BadRequest:
			if vs := v.GetFieldViolations(); len(vs) > 0 {
				f.Field = vs[0].GetField()
			}
		}
	}
	return f
}

// Server converts the errors of handlers, and logs those that are ours to fix, once: their text goes nowhere
// else. A nil logger logs nothing.
func Server(logger *slog.Logger) connect.Interceptor {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return server{logger}
}

type server struct{ logger *slog.Logger }

func (s server) convert(ctx context.Context, procedure string, err error) error {
	if err == nil {
		return nil
	}
	ce := ToConnect(err)
	if ce.Code() == connect.CodeInternal || ce.Code() == connect.CodeUnknown {
		s.logger.ErrorContext(ctx, "rpc failed", "procedure", procedure, "reason", fault.ReasonOf(err), "err", err)
	}
	return ce
}

func (s server) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, s.convert(ctx, req.Spec().Procedure, err)
		}
		return resp, nil
	}
}

func (s server) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return s.convert(ctx, conn.Spec().Procedure, next(ctx, conn))
	}
}

func (server) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// Client converts what calls and streams return, so that callers see faults only.
func Client() connect.Interceptor { return client{} }

type client struct{}

func (client) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, From(err)
		}
		return resp, nil
	}
}

func (client) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return clientConn{next(ctx, spec)}
	}
}

func (client) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type clientConn struct{ connect.StreamingClientConn }

func (c clientConn) Send(msg any) error    { return From(c.StreamingClientConn.Send(msg)) }
func (c clientConn) Receive(msg any) error { return From(c.StreamingClientConn.Receive(msg)) }
func (c clientConn) CloseRequest() error   { return From(c.StreamingClientConn.CloseRequest()) }
func (c clientConn) CloseResponse() error  { return From(c.StreamingClientConn.CloseResponse()) }
