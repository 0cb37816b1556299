package rpc_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/iotest"
	"time"

	"bailiwick/dataplane/internal/rpc"
)

func TestKindOf_KnowsWhatIsSpoken(t *testing.T) {
	for _, c := range []struct {
		method, kind, query string
		version             string
		want                rpc.Kind
	}{
		{"POST", "application/grpc", "", "", rpc.GRPC}, {"POST", "Application/gRPC+proto; x=y", "", "", rpc.GRPC}, {"POST", "application/grpcx", "", "", rpc.None},
		{"POST", "application/grpc-web", "", "", rpc.Web}, {"POST", "application/grpc-web-text+proto", "", "", rpc.WebText},
		{"POST", "application/connect+json", "", "", rpc.ConnectStream}, {"POST", "application/json", "", "1", rpc.ConnectUnary}, {"POST", "application/json", "", "", rpc.None},
		{"GET", "", "a=b&connect=v1", "", rpc.ConnectUnary}, {"GET", "", "xconnect=v1", "", rpc.None}, {"GET", "application/grpc", "", "", rpc.None}, {"PUT", "application/grpc", "", "", rpc.None},
	} {
		h := http.Header{"Content-Type": {c.kind}}
		if c.version != "" {
			h["Connect-Protocol-Version"] = []string{c.version}
		}
		if got := rpc.KindOf(c.method, h, c.query); got != c.want {
			t.Errorf("%+v: got %d", c, got)
		}
	}
}

func TestTimeout_ReadsAndWrites(t *testing.T) {
	for text, want := range map[string]time.Duration{"1S": time.Second, "100m": 100 * time.Millisecond, "99999999H": 24 * 365 * time.Hour, "5u": 5 * time.Microsecond,
		"": -1, "S": -1, "1": -1, "1x": -1, "-1S": -1, "123456789S": -1, "1.5S": -1} {
		got, ok := rpc.GRPC.Timeout(http.Header{"Grpc-Timeout": {text}})
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: got %v, %v, want %v", text, got, ok, want)
		}
	}
	for _, k := range []rpc.Kind{rpc.GRPC, rpc.Web, rpc.ConnectUnary} {
		for _, d := range []time.Duration{time.Millisecond, 1500 * time.Millisecond, 50 * time.Hour} {
			h := http.Header{}
			k.SetTimeout(h, d)
			if got, ok := k.Timeout(h); !ok || got != d {
				t.Errorf("kind %d: %v became %v, %v", k, d, got, ok)
			}
		}
	}
}

func TestCounter_CountsHoweverItIsCut(t *testing.T) {
	stream := append([]byte{0, 0, 0, 0, 3, 1, 2, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9}, 0x80, 0, 0, 0, 1, 7)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stream), "by bytes": iotest.OneByteReader(bytes.NewReader(stream)), "by halves": iotest.HalfReader(bytes.NewReader(stream))} {
		c := &rpc.Counter{Max: 3}
		got, err := io.ReadAll(rpc.Reader{ReadCloser: io.NopCloser(r), Counter: c})
		if err != nil || !bytes.Equal(got, stream) || c.N() != 3 {
			t.Errorf("%s: got %d messages of %d bytes, %v, want 3 of %d", name, c.N(), len(got), err, len(stream))
		}
	}
	c := &rpc.Counter{Max: 2}
	if err := c.Take(stream); !errors.Is(err, rpc.ErrMessage) {
		t.Errorf("a message of 3 where 2 may be: got %v", err)
	}
}

func TestCode_SaysTheSameInOtherWords(t *testing.T) {
	for status, want := range map[int]rpc.Code{401: rpc.Unauthenticated, 429: rpc.ResourceExhausted, 503: rpc.Unavailable, 502: rpc.Unknown, 504: rpc.DeadlineExceeded, 404: rpc.Unimplemented, 413: rpc.ResourceExhausted, 418: rpc.Unknown} {
		if got := rpc.FromHTTP(status); got != want {
			t.Errorf("%d: got %v, want %v", status, got, want)
		}
	}
	if c, ok := rpc.Said(http.Header{"Grpc-Status": {"14"}}); !ok || c != rpc.Unavailable || !c.Faulty() || c.HTTP() != 503 {
		t.Errorf("14: got %v, %v", c, ok)
	}
	if c, ok := rpc.Said(http.Header{"Grpc-Status": {"77"}}); !ok || c != rpc.Unknown {
		t.Errorf("77: got %v, %v", c, ok)
	}
	if _, ok := rpc.Said(http.Header{"Grpc-Status": {"x"}}); ok {
		t.Error("x is a status")
	}
	if got := rpc.Message("50% of\nä"); got != "50%25 of%0A%C3%A4" {
		t.Errorf("got %q", got)
	}
	const end = `{"error":{"code":"unavailable","message":"no"}}`
	if got, want := string(rpc.ConnectError(rpc.Unavailable, "no", true)), "\x02\x00\x00\x00"+string(rune(len(end)))+end; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
