package rpc

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
)

// Code is a gRPC status.
type Code uint8

const (
	OK Code = iota
	Canceled
	Unknown
	InvalidArgument
	DeadlineExceeded
	NotFound
	AlreadyExists
	PermissionDenied
	ResourceExhausted
	FailedPrecondition
	Aborted
	OutOfRange
	Unimplemented
	Internal
	Unavailable
	DataLoss
	Unauthenticated
)

var codes = [...]struct {
	name string // in Connect's words
	http int
}{
	{"ok", 200}, {"canceled", 499}, {"unknown", 500}, {"invalid_argument", 400}, {"deadline_exceeded", 504}, {"not_found", 404}, {"already_exists", 409},
	{"permission_denied", 403}, {"resource_exhausted", 429}, {"failed_precondition", 400}, {"aborted", 409}, {"out_of_range", 400}, {"unimplemented", 501},
	{"internal", 500}, {"unavailable", 503}, {"data_loss", 500}, {"unauthenticated", 401},
}

// String is the code's name as Connect writes it.
func (c Code) String() string {
	if int(c) < len(codes) {
		return codes[c].name
	}
	return "unknown"
}

// HTTP is the status of HTTP that says the same.
func (c Code) HTTP() int {
	if int(c) < len(codes) {
		return codes[c].http
	}
	return 500
}

// Faulty says whether the status is the doing of the server, and not of what was asked.
func (c Code) Faulty() bool { return c.HTTP() >= 500 && c != DeadlineExceeded && c != Unimplemented }

// FromHTTP is the code of an edge's own refusal. 502 is a request that the upstream may have acted on: clients repeat what is
// Unavailable, so it is Unknown.
func FromHTTP(status int) Code {
	switch status {
	case 400:
		return InvalidArgument
	case 401:
		return Unauthenticated
	case 403:
		return PermissionDenied
	case 404, 405, 501:
		return Unimplemented
	case 402, 412, 421, 422:
		return FailedPrecondition
	case 408, 504:
		return DeadlineExceeded
	case 409:
		return Aborted
	case 413, 429, 431:
		return ResourceExhausted
	case 500:
		return Internal
	case 503:
		return Unavailable
	}
	return Unknown
}

// Said is the code of a Grpc-Status in headers or trailers; false: they have none that reads. A number beyond the known is Unknown.
func Said(h http.Header) (Code, bool) {
	v := h["Grpc-Status"]
	if len(v) != 1 {
		return OK, false
	}
	n, err := strconv.ParseUint(v[0], 10, 32)
	if err != nil {
		return OK, false
	}
	if n >= uint64(len(codes)) {
		return Unknown, true
	}
	return Code(n), true
}

// Message is a text as a Grpc-Message has it.
func Message(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// ConnectError is an error as Connect writes it: the body of an answer, or framed as the end of a stream.
func ConnectError(c Code, message string, stream bool) []byte {
	type said struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if !stream {
		data, _ := json.Marshal(said{c.String(), message}) // two texts: it cannot fail
		return data
	}
	data, _ := json.Marshal(struct {
		Error said `json:"error"`
	}{said{c.String(), message}})
	head := []byte{endStream, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	return append(head, data...)
}
