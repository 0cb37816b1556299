package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault"
)

// Handler is IngestService, the way around blocked UDP, for the peer port's mux
// (HTTP/2: the stream goes both ways at once). The http.Server must set no
// ReadTimeout and no WriteTimeout, and its receive buffer per connection must
// hold several streams', or detail that waits would hold up the ledger.
func (s *Server) Handler(opts ...connect.HandlerOption) (path string, h http.Handler) {
	opts = append(opts, connect.WithReadMaxBytes(MaxMessage))
	path, inner := usagev1connect.NewIngestServiceHandler(door{s: s}, opts...)
	return path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Connect's streams have no deadlines of their own.
		inner.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), deadlines{}, http.NewResponseController(w))))
	})
}

type deadlines struct{}

type door struct{ s *Server }

func (d door) Upload(ctx context.Context, st *connect.BidiStream[usagev1.UploadRequest, usagev1.UploadResponse]) error {
	return receive(ctx, d.s, st, d.s.serve)
}

func (d door) UploadDetail(ctx context.Context, st *connect.BidiStream[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse]) error {
	return receive(ctx, d.s, st, d.s.serveDetail)
}

// receive runs one session over a stream and gives its end a code.
func receive[In, Out any](ctx context.Context, s *Server, st *connect.BidiStream[In, Out], serve func(ctx context.Context, l link[In, Out], transport, edge, region string) error) error {
	if s.cfg.PeerFromContext == nil {
		return connect.NewError(connect.CodeUnimplemented, errors.New("this node takes usage over QUIC only"))
	}
	edge, region, err := s.cfg.PeerFromContext(ctx)
	if err != nil {
		code := connect.CodePermissionDenied
		if fault.KindOf(err) == fault.Unauthenticated {
			code = connect.CodeUnauthenticated
		}
		return connect.NewError(code, err)
	}
	rc, ok := ctx.Value(deadlines{}).(*http.ResponseController)
	if !ok {
		return connect.NewError(connect.CodeInternal, errors.New("upload was mounted without Handler"))
	}
	l := &connectLink[In, Out]{st: st, rc: rc, quiet: s.cfg.Quiet}
	err = serve(ctx, l, "connect", edge, region)
	l.finish()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errWithdrawn):
		return connect.NewError(connect.CodePermissionDenied, errWithdrawn)
	case errors.Is(err, errMalformed):
		return connect.NewError(connect.CodeInvalidArgument, errMalformed)
	case errors.Is(err, errReplaced):
		return connect.NewError(connect.CodeAborted, errReplaced)
	case errors.Is(err, errStopping), errors.Is(err, errLedger), errors.Is(err, errDetail):
		return connect.NewError(connect.CodeUnavailable, errors.New(brief(err)))
	}
	return err
}

type connectLink[In, Out any] struct {
	st    *connect.BidiStream[In, Out]
	rc    *http.ResponseController
	quiet time.Duration

	mu      sync.Mutex // covers aborted and the read deadline: Receive must not lift Abort's
	aborted bool
}

func (l *connectLink[In, Out]) Receive() (*In, error) {
	if err := l.allot(); err != nil {
		return nil, err
	}
	m, err := l.st.Receive()
	switch {
	case err == nil:
		return m, nil
	case errors.Is(err, io.EOF):
		return nil, io.EOF
	}
	switch connect.CodeOf(err) {
	case connect.CodeResourceExhausted, connect.CodeInvalidArgument:
		return nil, fmt.Errorf("%w: it is too large or does not decode", errMalformed)
	}
	return nil, err
}

func (l *connectLink[In, Out]) allot() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aborted {
		return context.Canceled
	}
	return l.rc.SetReadDeadline(time.Now().Add(l.quiet))
}

// Send lifts its deadline again: on HTTP/2 one that passes resets the stream
// whether or not something is being written.
func (l *connectLink[In, Out]) Send(m *Out) error {
	if err := l.rc.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	return errors.Join(l.st.Send(m), l.rc.SetWriteDeadline(time.Time{}))
}

func (l *connectLink[In, Out]) Abort() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.aborted {
		l.aborted = true
		_ = l.rc.SetReadDeadline(time.Unix(1, 0)) // supported, or allot would have ended the session
	}
}

// finish makes a late Abort do nothing: once the handler has returned, net/http
// panics on whoever sets a deadline.
func (l *connectLink[In, Out]) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aborted = true
}
