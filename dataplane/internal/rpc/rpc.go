// Package rpc owns what gRPC, gRPC-Web and Connect say over HTTP: which of them a request speaks, how long it may take, how many
// messages passed, what a status of one is in another's words.
//
// It never sends, never decides and looks into no message: their frames' heads are all that is read. It is pure, keeps nothing
// and may be used by any number of goroutines at once; a Counter belongs to one.
package rpc

import (
	"net/http"
	"strings"
)

// Kind is what a request speaks.
type Kind uint8

const (
	None Kind = iota
	GRPC
	Web           // gRPC-Web, binary
	WebText       // gRPC-Web in base64
	ConnectUnary  // one message each way
	ConnectStream // framed as gRPC's
)

// KindOf is what a request speaks by its headers and query.
func KindOf(method string, h http.Header, query string) Kind {
	if method == http.MethodGet {
		if strings.Contains(query, "connect=v1") && hasConnect(query) {
			return ConnectUnary
		}
		return None
	}
	if method != http.MethodPost {
		return None
	}
	kind := ByType(first(h, "Content-Type"))
	if kind == None && first(h, "Connect-Protocol-Version") == "1" {
		return ConnectUnary
	}
	return kind
}

func hasConnect(query string) bool {
	for part := range strings.SplitSeq(query, "&") {
		if part == "connect=v1" {
			return true
		}
	}
	return false
}

// ByType is what a content type alone says.
func ByType(t string) Kind {
	t, _, _ = strings.Cut(t, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	is := func(base string) bool { return t == base || strings.HasPrefix(t, base+"+") }
	switch {
	case !strings.HasPrefix(t, "application/"):
		return None
	case is("application/grpc"):
		return GRPC
	case is("application/grpc-web"):
		return Web
	case is("application/grpc-web-text"):
		return WebText
	case strings.HasPrefix(t, "application/connect+"):
		return ConnectStream
	}
	return None
}

// Framed says whether bodies are messages behind heads of five bytes.
func (k Kind) Framed() bool { return k == GRPC || k == Web || k == ConnectStream }

func first(h http.Header, name string) string {
	if v := h[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}
