package rpc

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
)

// Native is gRPC's content type for one of gRPC-Web, and the other way round for an answer.
func Native(web string) string {
	for _, prefix := range [...]string{"application/grpc-web-text", "application/grpc-web"} {
		if len(web) >= len(prefix) && strings.EqualFold(web[:len(prefix)], prefix) {
			return "application/grpc" + web[len(prefix):]
		}
	}
	return web
}

// Web is the content type of an answer of gRPC to who speaks k.
func (k Kind) Web(native string) string {
	rest := strings.TrimPrefix(native, "application/grpc")
	if k == WebText {
		return "application/grpc-web-text" + rest
	}
	return "application/grpc-web" + rest
}

// FromText reads base64, of which each piece may have its own padding.
func FromText(r io.ReadCloser) io.ReadCloser { return &textReader{ReadCloser: r} }

type textReader struct {
	io.ReadCloser
	buf        [4 << 10]byte
	have       int // of buf: less than a quantum
	out, spare []byte
	err        error
}

func (t *textReader) Read(p []byte) (int, error) {
	for len(t.out) == 0 {
		if t.err != nil {
			return 0, t.err
		}
		n, err := t.ReadCloser.Read(t.buf[t.have:])
		have := t.buf[:t.have+n]
		whole := len(have) &^ 3
		t.spare = t.spare[:0]
		for i := 0; i < whole; i += 4 {
			var quantum [3]byte
			m, bad := base64.StdEncoding.Decode(quantum[:], have[i:i+4])
			if bad != nil {
				t.err = bad
				return 0, bad
			}
			t.spare = append(t.spare, quantum[:m]...)
		}
		t.out = t.spare
		t.have = copy(t.buf[:], have[whole:])
		if err == io.EOF && t.have > 0 {
			err = io.ErrUnexpectedEOF
		}
		t.err = err
	}
	n := copy(p, t.out)
	t.out = t.out[n:]
	return n, nil
}

// ToWeb is the body of an answer of gRPC as gRPC-Web has it: trailers, asked for when body has ended, are its last frame.
func (k Kind) ToWeb(body io.ReadCloser, trailer func() http.Header) io.ReadCloser {
	return &webBody{ReadCloser: body, text: k == WebText, trailer: trailer}
}

type webBody struct {
	io.ReadCloser
	text    bool
	trailer func() http.Header
	buf     [12 << 10]byte
	coded   []byte
	rest    []byte
	over    bool
}

func (b *webBody) Read(p []byte) (int, error) {
	for len(b.rest) == 0 {
		if b.over {
			return 0, io.EOF
		}
		n, err := b.ReadCloser.Read(b.buf[:])
		chunk := b.buf[:n]
		if err == io.EOF {
			b.over = true
			chunk = append(chunk[:n:n], TrailerFrame(b.trailer())...)
		} else if err != nil {
			return 0, err
		}
		if b.text {
			b.coded = base64.StdEncoding.AppendEncode(b.coded[:0], chunk)
			chunk = b.coded
		}
		b.rest = chunk
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// TrailerFrame is the last frame of an answer of gRPC-Web.
func TrailerFrame(h http.Header) []byte {
	frame := []byte{trailers, 0, 0, 0, 0}
	for name, values := range h {
		for _, v := range values {
			frame = append(append(append(append(frame, strings.ToLower(name)...), ": "...), v...), '\r', '\n')
		}
	}
	binary.BigEndian.PutUint32(frame[1:headLen], uint32(len(frame)-headLen))
	return frame
}
