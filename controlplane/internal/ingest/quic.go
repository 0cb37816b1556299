package ingest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
)

// Why a connection was closed, for the edge's log.
const (
	codeDone        quic.ApplicationErrorCode = iota // in order
	codeDenied                                       // the peer is not an edge that may come here
	codeProtocol                                     // it broke the protocol
	codeUnavailable                                  // try again, here or elsewhere
	codeReplaced                                     // a newer session of the same edge has begun
)

const (
	writeLimit = 10 * time.Second // an edge that does not read its answers
	linger     = 2 * time.Second  // for the last answer to arrive before the connection is closed
)

func (s *Server) serveQUIC(ctx context.Context) error {
	defer s.cfg.Conn.Close()
	tr := &quic.Transport{Conn: s.cfg.Conn}
	if s.cfg.ResetKey != ([32]byte{}) {
		key := quic.StatelessResetKey(s.cfg.ResetKey)
		tr.StatelessResetKey = &key
	}
	defer tr.Close()
	tlsConfig := s.cfg.TLS.Clone()
	tlsConfig.NextProtos = []string{ALPN}
	// Two streams of one edge, ledger and detail, need little; the windows bound
	// what a hostile one can make us hold. The connection's is larger than both
	// streams' together from the start, so that detail which waits for the disk
	// takes nothing from the ledger. 0-RTT stays off: it could be replayed.
	lis, err := tr.Listen(tlsConfig, &quic.Config{
		MaxIdleTimeout:                 s.cfg.Idle,
		KeepAlivePeriod:                s.cfg.Idle / 3,
		MaxIncomingStreams:             2,
		MaxIncomingUniStreams:          -1,
		InitialStreamReceiveWindow:     256 << 10,
		MaxStreamReceiveWindow:         1 << 20,
		InitialConnectionReceiveWindow: 4 << 20,
		MaxConnectionReceiveWindow:     4 << 20,
	})
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Conn.LocalAddr(), err)
	}
	var conns sync.WaitGroup
	defer conns.Wait()
	defer lis.Close()
	for {
		c, err := lis.Accept(ctx)
		if ctx.Err() != nil {
			if err == nil {
				c.CloseWithError(codeUnavailable, errStopping.Error())
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", s.cfg.Conn.LocalAddr(), err)
		}
		conns.Go(func() { s.serveConn(ctx, c) })
	}
}

// serveConn serves the streams of one connection until it ends: the first that
// the edge opens is its ledger session, with which the connection ends; any
// other carries detail and ends alone.
func (s *Server) serveConn(ctx context.Context, c *quic.Conn) {
	state := c.ConnectionState().TLS
	edge, region, err := "", "", error(nil)
	if state.NegotiatedProtocol != ALPN || len(state.PeerCertificates) == 0 {
		err = errors.New("the peer did not authenticate for " + ALPN)
	} else {
		edge, region, err = s.cfg.Peer(state)
	}
	if err != nil {
		s.cfg.Logger.Warn("usage connection refused", "remote", c.RemoteAddr().String(), "error", err)
		text := err.Error()
		if reason := fault.ReasonOf(err); reason != "" {
			text = reason + ": " + text
		}
		c.CloseWithError(codeDenied, text)
		return
	}
	waiting, cancel := context.WithTimeout(ctx, s.cfg.Quiet)
	st, err := c.AcceptStream(waiting)
	cancel()
	if err != nil {
		c.CloseWithError(codeDone, "no stream") // or it is closed already, or this node is stopping
		return
	}
	var details sync.WaitGroup
	defer details.Wait()
	details.Go(func() { s.acceptDetail(ctx, c, edge, region, &details) })
	err = s.serve(ctx, newQUICLink[usagev1.UploadRequest, usagev1.UploadResponse](st, s.cfg.Quiet), "quic", edge, region)
	st.Close() // what was answered still arrives
	st.CancelRead(0)
	if !errors.Is(err, errCut) && !errors.Is(err, errReplaced) && !errors.Is(err, errStopping) {
		select { // closing the connection would overtake the last answer
		case <-c.Context().Done():
		case <-time.After(linger):
		case <-ctx.Done():
		}
	}
	code, text := codeProtocol, brief(err)
	switch {
	case err == nil:
		code, text = codeDone, ""
	case errors.Is(err, errWithdrawn):
		code = codeDenied
	case errors.Is(err, errReplaced):
		code = codeReplaced
	case errors.Is(err, errStopping), errors.Is(err, errLedger), ctx.Err() != nil:
		code = codeUnavailable
	}
	c.CloseWithError(code, text)
}

// acceptDetail serves detail streams until the connection ends.
func (s *Server) acceptDetail(ctx context.Context, c *quic.Conn, edge, region string, details *sync.WaitGroup) {
	for {
		st, err := c.AcceptStream(ctx)
		if err != nil {
			return
		}
		details.Go(func() {
			err := s.serveDetail(ctx, newQUICLink[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse](st, s.cfg.Quiet), "quic", edge, region)
			st.Close()
			st.CancelRead(quic.StreamErrorCode(codeDone))
			if err != nil {
				st.CancelRead(quic.StreamErrorCode(codeUnavailable))
			}
		})
	}
}

// brief keeps inner causes out of what a peer is told.
func brief(err error) string {
	for _, e := range []error{errWithdrawn, errReplaced, errStopping, errLedger, errDetail, errMalformed} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return "the stream broke"
}

// message is the pointer to a generated type.
type message[T any] interface {
	*T
	proto.Message
}

// quicLink frames messages on a stream: uvarint length, message.
type quicLink[In, Out any, PIn message[In], POut message[Out]] struct {
	st    *quic.Stream
	in    *bufio.Reader
	out   []byte
	quiet time.Duration
}

func newQUICLink[In, Out any, PIn message[In], POut message[Out]](st *quic.Stream, quiet time.Duration) *quicLink[In, Out, PIn, POut] {
	return &quicLink[In, Out, PIn, POut]{st: st, in: bufio.NewReaderSize(st, 64<<10), quiet: quiet}
}

func (l *quicLink[In, Out, PIn, POut]) Receive() (*In, error) {
	if err := l.st.SetReadDeadline(time.Now().Add(l.quiet)); err != nil {
		return nil, err
	}
	if _, err := l.in.Peek(1); err != nil {
		return nil, err // io.EOF here, between messages, is an orderly end
	}
	n, err := binary.ReadUvarint(l.in)
	if err != nil {
		return nil, broken(err)
	}
	if n > MaxMessage {
		return nil, fmt.Errorf("%w: it holds %d bytes, at most %d are allowed", errMalformed, n, MaxMessage)
	}
	// Grows with what arrives: a length alone must not cost 5 MiB.
	b, err := io.ReadAll(io.LimitReader(l.in, int64(n)))
	if err == nil && uint64(len(b)) < n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, broken(err)
	}
	m := new(In)
	if err := proto.Unmarshal(b, PIn(m)); err != nil {
		return nil, fmt.Errorf("%w: it does not decode", errMalformed)
	}
	return m, nil
}

// broken tells a stream cut inside a message from garbage: only the latter is
// worth an answer.
func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", errMalformed)
	}
	if _, ok := errors.AsType[*quic.StreamError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return err
	}
	if t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && t.Timeout() {
		return err
	}
	return fmt.Errorf("%w: %w", errMalformed, err)
}

func (l *quicLink[In, Out, PIn, POut]) Send(m *Out) error {
	if err := l.st.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	l.out = binary.AppendUvarint(l.out[:0], uint64(proto.Size(POut(m))))
	var err error
	if l.out, err = (proto.MarshalOptions{}).MarshalAppend(l.out, POut(m)); err != nil {
		return err
	}
	_, err = l.st.Write(l.out)
	return err
}

func (l *quicLink[In, Out, PIn, POut]) Abort() { l.st.CancelRead(0) }
