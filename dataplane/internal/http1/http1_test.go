package http1_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/http1"
)

const rest = "Host: a.test\r\n\r\n"

func TestRequest_IsReadInOneWayOrNotAtAll(t *testing.T) {
	for _, c := range []struct {
		name, head string
		err        error
	}{
		{"plain", "GET / HTTP/1.1\r\n" + rest, nil},
		{"no space before the value", "GET / HTTP/1.1\r\nHost:a.test\r\n\r\n", nil},
		{"old", "GET / HTTP/1.0\r\n\r\n", nil},
		{"absolute, the same host", "GET http://a.test/x?y HTTP/1.1\r\n" + rest, nil},
		{"absolute, another host", "GET http://b.test/x HTTP/1.1\r\n" + rest, http1.ErrHost},
		{"absolute, another host, in 1.0", "GET http://b.test/x HTTP/1.0\r\n" + rest, http1.ErrHost},
		{"absolute, an empty host, in 1.0", "GET http://b.test/x HTTP/1.0\r\nHost:\r\n\r\n", http1.ErrHost},
		{"absolute, the same host, in 1.0", "GET http://A.test/x HTTP/1.0\r\n" + rest, nil},
		{"absolute, no host, in 1.0", "GET http://b.test/x HTTP/1.0\r\n\r\n", nil},
		{"absolute, with a user", "GET http://u@a.test/x HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"absolute, another scheme", "GET ftp://a.test/x HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"no host", "GET / HTTP/1.1\r\n\r\n", http1.ErrHost},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a.test\r\n" + rest, http1.ErrHost},
		{"chunked", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + rest, nil},
		{"both framings", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n" + rest, http1.ErrFraming},
		{"chunked twice", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + rest, http1.ErrFraming},
		{"chunked in a list", "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n" + rest, http1.ErrCoding},
		{"chunked with a tab inside", "POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n" + rest, http1.ErrLine},
		{"chunked in 1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n" + rest, http1.ErrFraming},
		{"two lengths that agree", "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n" + rest, http1.ErrFraming},
		{"lengths in a list", "POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n" + rest, http1.ErrFraming},
		{"signed length", "POST / HTTP/1.1\r\nContent-Length: +1\r\n" + rest, http1.ErrFraming},
		{"hexadecimal length", "POST / HTTP/1.1\r\nContent-Length: 0x1\r\n" + rest, http1.ErrFraming},
		{"endless length", "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n" + rest, http1.ErrFraming},
		{"blank length", "POST / HTTP/1.1\r\nContent-Length:\r\n" + rest, http1.ErrFraming},
		{"space before the colon", "GET / HTTP/1.1\r\nX : 1\r\n" + rest, http1.ErrField},
		{"folded", "GET / HTTP/1.1\r\nX: 1\r\n y\r\n" + rest, http1.ErrField},
		{"no name", "GET / HTTP/1.1\r\n: 1\r\n" + rest, http1.ErrField},
		{"no colon", "GET / HTTP/1.1\r\nX\r\n" + rest, http1.ErrField},
		{"nul in a value", "GET / HTTP/1.1\r\nX: a\x00b\r\n" + rest, http1.ErrLine},
		{"bare CR in a value", "GET / HTTP/1.1\r\nX: a\rb\r\n" + rest, http1.ErrLine},
		{"bare LF", "GET / HTTP/1.1\r\nX: a\nY: b\r\n" + rest, http1.ErrLine},
		{"bare LF in the first line", "GET / HTTP/1.1\n" + rest, http1.ErrLine},
		{"blank line first", "\r\nGET / HTTP/1.1\r\n" + rest, http1.ErrLine},
		{"two spaces", "GET  / HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"tab in the line", "GET\t/ HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"fragment", "GET /a#b HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"nul in the target", "GET /\x00 HTTP/1.1\r\n" + rest, http1.ErrRequest},
		{"version 2", "GET / HTTP/2.0\r\n" + rest, http1.ErrVersion},
		{"version 1.2", "GET / HTTP/1.2\r\n" + rest, http1.ErrVersion},
		{"version in small letters", "GET / http/1.1\r\n" + rest, http1.ErrRequest},
		{"no version", "GET /\r\n" + rest, http1.ErrRequest},
	} {
		var r http1.Request
		end, err := http1.Scan([]byte(c.head), 0)
		if err == nil {
			if end != len(c.head) {
				t.Errorf("%s: the head ends after %d of %d bytes", c.name, end, len(c.head))
				continue
			}
			err = r.Parse(c.head)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.err)
		}
	}
	var r http1.Request
	many := "GET / HTTP/1.1\r\n" + strings.Repeat("X: 1\r\n", http1.MaxFields) + rest
	if err := r.Parse(many); !errors.Is(err, http1.ErrFields) {
		t.Errorf("%d fields: got %v, want too many", http1.MaxFields+1, err)
	}
}

func TestRequest_SaysWhatItSays(t *testing.T) {
	var r http1.Request
	head := "POST /a/b;c=1?q=%2F HTTP/1.1\r\nHost: a.test:8080\r\nX_Y: \t v \t\r\nConnection: Keep-Alive, X-Z\r\nconnection: close\r\nExpect: 100-Continue\r\nUpgrade: h2c\r\nContent-Length: 007\r\n\r\n"
	if err := r.Parse(head); err != nil {
		t.Fatal(err)
	}
	if r.Method != "POST" || r.Path != "/a/b;c=1" || r.Query != "q=%2F" || !r.HasQuery || r.Authority != "a.test:8080" || r.Length != 7 || r.Fields[1].Value != "v" ||
		!r.Plain || !r.Close || !r.Options || !r.Continue || r.Expects || !r.Upgrade || !r.Aliases {
		t.Errorf("got %+v", r)
	}
	for target, want := range map[string]bool{"/a": true, "/a%20b": false, "/a\"b": false, "/é": false, "/a[1]": false, "/a?b\"": true} {
		if err := r.Parse("GET " + target + " HTTP/1.1\r\n" + rest); err != nil || r.Plain != want {
			t.Errorf("%s: plain %v %v, want %v", target, r.Plain, err, want)
		}
	}
	for c := range 128 { // each byte that a name may have
		name := "X" + string(rune(c)) + "Y"
		odd := strings.ContainsRune("!#$%&'*+.^_`|~", rune(c))
		if err := r.Parse("GET / HTTP/1.1\r\n" + name + ": 1\r\n" + rest); err == nil && r.Fields[0].Name == name && (r.Aliases != odd || http1.Alias(name) != odd || http1.Dashed(name) != name && http1.Dashed(name) != "X-Y" || odd != (http1.Dashed(name) != name)) {
			t.Errorf("%s: odd %v %v, dashed %s, want odd %v", name, r.Aliases, http1.Alias(name), http1.Dashed(name), odd)
		} else if err != nil && odd {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { r.Parse(head) }); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func TestAnswer_IsReadInOneWayOrNotAtAll(t *testing.T) {
	for _, c := range []struct {
		name, head, method string
		length             int64
		close              bool
		err                error
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", 5, false, nil},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", "GET", 5, false, nil},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", http1.Chunked, false, nil},
		{"until the end", "HTTP/1.1 200 OK\r\n\r\n", "GET", http1.UntilClose, true, nil},
		{"head", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 0, false, nil},
		{"not modified", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", 0, false, nil},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", "GET", 0, false, nil},
		{"no content with a length", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "GET", 0, false, http1.ErrFraming},
		{"both framings", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "GET", 0, false, http1.ErrFraming},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "GET", 0, false, http1.ErrFraming},
		{"old", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", 5, true, nil},
		{"close", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", "GET", 5, true, nil},
		{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", "GET", 0, false, http1.ErrStatus},
		{"status 600", "HTTP/1.1 600 OK\r\n\r\n", "GET", 0, false, http1.ErrStatus},
		{"version", "HTTP/2.0 200 OK\r\n\r\n", "GET", 0, false, http1.ErrStatus},
	} {
		var a http1.Answer
		if err := a.Parse(c.head, c.method); !errors.Is(err, c.err) || err == nil && (a.Length != c.length || a.Close != c.close) {
			t.Errorf("%s: got %v, length %d, close %v; want %v, %d, %v", c.name, err, a.Length, a.Close, c.err, c.length, c.close)
		}
	}
}

// pieces is a connection whose bytes come in pieces of some size.
type pieces struct {
	data []byte
	size int
	have []byte
}

func (p *pieces) Peek() ([]byte, error) {
	if len(p.have) == 0 {
		if len(p.data) == 0 {
			return nil, io.EOF
		}
		n := min(p.size, len(p.data))
		p.have, p.data = p.data[:n], p.data[n:]
	}
	return p.have, nil
}

func (p *pieces) Discard(n int) { p.have = p.have[n:] }

func (p *pieces) Read(to []byte) (int, error) {
	have, err := p.Peek()
	n := copy(to, have)
	p.Discard(n)
	return n, err
}

func TestBody_EndsWhereItEnds(t *testing.T) {
	for _, c := range []struct {
		name, text string
		length     int64
		want, left string
		err        error
	}{
		{"length", "hello, next", 5, "hello", ", next", nil},
		{"length, early end", "hel", 5, "hel", "", io.ErrUnexpectedEOF},
		{"until the end", "hello", http1.UntilClose, "hello", "", nil},
		{"chunks", "5\r\nhello\r\n01\r\n!\r\n0\r\n\r\nnext", http1.Chunked, "hello!", "next", nil},
		{"trailer", "1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\nnext", http1.Chunked, "x", "next", nil},
		{"extension", "5;a=b\r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"bare LF behind a size", "5\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"bare LF behind a chunk", "5\r\nhello\n0\r\n\r\n", http1.Chunked, "hello", "", http1.ErrChunk},
		{"no size", "\r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"signed size", "+5\r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"space behind a size", "5 \r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"0x", "0x5\r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"overflow", "10000000000000005\r\nhello\r\n0\r\n\r\n", http1.Chunked, "", "", http1.ErrChunk},
		{"length in the trailer", "0\r\nContent-Length: 1\r\n\r\n", http1.Chunked, "", "", http1.ErrField},
		{"bare LF in the trailer", "0\r\nX: 1\n\r\n", http1.Chunked, "", "", http1.ErrLine},
		{"endless trailer", "0\r\nX: " + strings.Repeat("x", 200) + "\r\n\r\n", http1.Chunked, "", "", http1.ErrTooLarge},
		{"early end", "5\r\nhel", http1.Chunked, "hel", "", io.ErrUnexpectedEOF},
		{"no last chunk", "5\r\nhello\r\n", http1.Chunked, "hello", "", io.ErrUnexpectedEOF},
	} {
		for _, size := range []int{1, 2, 3, 1 << 10} {
			src := &pieces{data: []byte(c.text), size: size}
			b := http1.NewBody(src, c.length, 100)
			got, err := io.ReadAll(b)
			if !errors.Is(err, c.err) || string(got) != c.want {
				t.Errorf("%s by %d: got %q %v, want %q %v", c.name, size, got, err, c.want, c.err)
			}
			if err == nil && string(src.have)+string(src.data) != c.left {
				t.Errorf("%s by %d: %q is left, want %q", c.name, size, string(src.have)+string(src.data), c.left)
			}
			if done := b.Done(); done != (c.err == nil && c.length != http1.UntilClose) {
				t.Errorf("%s by %d: done %v", c.name, size, done)
			}
			// Who looks ahead before each byte reads the same, and hears of the end before there is room for anything.
			ahead, looked := http1.NewBody(&pieces{data: []byte(c.text), size: size}, c.length, 100), ""
			for err = ahead.Ahead(); err == nil; err = ahead.Ahead() {
				var one [1]byte
				if n, err := ahead.Read(one[:]); n != 1 || err != nil && err != io.EOF {
					t.Errorf("%s by %d: behind a look ahead %d bytes, %v", c.name, size, n, err)
				}
				looked += string(one[:])
			}
			if looked != c.want || c.err == nil && err != io.EOF || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%s by %d: looking ahead %q %v, want %q %v", c.name, size, looked, err, c.want, c.err)
			}
			if c.name == "trailer" && (len(b.Trailer()) != 1 || b.Trailer()[0].Value != "1") {
				t.Errorf("got the trailer %v", b.Trailer())
			}
		}
	}
}

// Behind a request's body nothing stands that is of a connection, frames, routes or shows a key; behind an answer's that is for who
// passes it on to drop.
func TestBody_ATrailerOfARequest(t *testing.T) {
	for _, name := range []string{"Authorization", "TE", "trailer", "Keep-Alive", "proxy-connection", "Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Host", "EXPECT", "X-Sum", "Content-Type"} {
		for _, request := range []bool{false, true} {
			b := http1.NewBody(&pieces{data: []byte("1\r\nx\r\n0\r\n" + name + ": 1\r\n\r\n"), size: 7}, http1.Chunked, 100)
			b.Request = request
			_, err := io.ReadAll(b)
			framing := strings.Contains("Connection Upgrade Transfer-Encoding Content-Length Host EXPECT", name)
			if want := framing || request && name != "X-Sum" && name != "Content-Type"; (err != nil) != want || want && !errors.Is(err, http1.ErrField) {
				t.Errorf("%s, of a request %v: got %v", name, request, err)
			}
		}
	}
}

// What is taken here, net/http takes too, and reads in the same way: one parser more is one reading less, never another one.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n" + rest, "POST /a?b HTTP/1.1\r\nContent-Length: 3\r\n" + rest + "abc", "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + rest + "3\r\nabc\r\n0\r\n\r\n",
		"GET http://a.test/x HTTP/1.1\r\n" + rest, "GET / HTTP/1.0\r\n\r\n", "PUT /%2e HTTP/1.1\r\nConnection: close, x\r\nX_Y: 1\r\n" + rest,
		"GET http://a.test/x HTTP/1.0\r\n" + rest, "GET http://b.test/x HTTP/1.0\r\n" + rest, "GET http://b.test/x HTTP/1.0\r\n\r\n", "GET /a%3fb%23c HTTP/1.1\r\nX.Api~Key: k\r\n" + rest, "GET / HTTP/1.1\r\nHost: a.test:65536\r\n\r\n",
		"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n" + rest, "GET / HTTP/1.1\nHost: a\n\n", "OPTIONS * HTTP/1.1\r\n" + rest, "CONNECT a:1 HTTP/1.1\r\n" + rest} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		end, err := http1.Scan(data, 0)
		for i := 0; i <= len(data) && i < 200; i++ { // however it arrives
			again, err2 := http1.Scan(data[:i], 0)
			if i < end && again != 0 || err2 == nil && again != 0 && again != end {
				t.Fatalf("after %d bytes the head ends at %d, of all at %d", i, again, end)
			}
		}
		if err != nil || end == 0 {
			return
		}
		var r http1.Request
		if r.Parse(string(data[:end])) != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			if strings.Contains(err.Error(), "invalid URL") || strings.Contains(err.Error(), "parse \"") || r.Method == "CONNECT" { // the proxy parses it so, and refuses
				return
			}
			t.Fatalf("net/http does not take what is taken here: %v: %q", err, data[:end])
		}
		length := theirs.ContentLength
		if slices.Contains(theirs.TransferEncoding, "chunked") {
			length = http1.Chunked
		}
		if r.Method == "CONNECT" {
			return // of no host, and refused
		}
		if theirs.Method != r.Method || length != r.Length || theirs.ProtoMinor != r.Minor || theirs.Host != r.Authority && !(r.Minor == 0) || theirs.Close && !r.Close {
			t.Fatalf("%q: got %+v, net/http reads %s %s, length %d, host %q, close %v", data[:end], r, theirs.Method, theirs.RequestURI, length, theirs.Host, theirs.Close)
		}
		if r.Plain && (theirs.URL.Path != r.Path || theirs.URL.EscapedPath() != r.Path || theirs.URL.RawQuery != r.Query) {
			t.Fatalf("%q is said to be plain; net/http reads %q, %q", r.Target, theirs.URL.Path, theirs.URL.RawQuery)
		}
	})
}

// A target that comes over HTTP/2 or HTTP/3 is read as it would be over HTTP/1.1.
func FuzzLocate(f *testing.F) {
	for _, s := range []string{"/", "/a?b?c", "*", "", "a", "/%2e/\xc3\xbc", "/a#b", "/a b", "//a", "/?", "http://a/b", "*?"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		var two, one http1.Request
		ok := two.Locate(target)
		err := one.Parse("GET " + target + " HTTP/1.1\r\n" + rest)
		if strings.HasPrefix(target, "/") || target == "*" {
			if ok != (err == nil) {
				t.Fatalf("%q: taken over HTTP/2: %v; over HTTP/1.1: %v", target, ok, err)
			}
		} else if ok {
			t.Fatalf("%q is no target over HTTP/2", target)
		}
		if ok && (two.Target != one.Target || two.Path != one.Path || two.Query != one.Query || two.HasQuery != one.HasQuery || two.Plain != one.Plain) {
			t.Fatalf("%q: %+v over HTTP/2, %+v over HTTP/1.1", target, two, one)
		}
	})
}

func FuzzBody(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\nnext", "1\r\nx\r\n0\r\nA: b\r\n\r\n", "5;x\r\nhello\r\n0\r\n\r\n", "5\nhello\n0\n\n", "ffffffffffffffff\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		src := &pieces{data: data, size: int(size) + 1}
		b := http1.NewBody(src, http1.Chunked, 1<<10)
		got, err := io.ReadAll(b)
		passed, taken, err3 := http1.NewBody(nil, http1.Chunked, 1<<10), 0, error(nil)
		for rest := data; len(rest) > 0 && err3 == nil; {
			var n int
			piece := rest[:min(len(rest), int(size)+1)]
			n, err3 = passed.Pass(piece)
			taken, rest = taken+n, rest[n:]
			if n < len(piece) && err3 == nil {
				t.Fatalf("%d of %d bytes, and no word why", n, len(piece))
			}
		}
		switch {
		case err == nil && (err3 != io.EOF || taken != len(data)-len(src.data)-len(src.have)):
			t.Fatalf("a body of %d bytes; handed over, %d, %v", len(data)-len(src.data)-len(src.have), taken, err3)
		case err == io.ErrUnexpectedEOF && err3 != nil, err != nil && err != io.ErrUnexpectedEOF && err != err3:
			t.Fatalf("%v; handed over, %v", err, err3)
		}
		whole := &pieces{data: data, size: len(data) + 1}
		again, err2 := io.ReadAll(http1.NewBody(whole, http1.Chunked, 1<<10))
		if string(got) != string(again) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("in pieces %q %v, whole %q %v", got, err, again, err2)
		}
		if err != nil {
			return
		}
		theirs, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(data)))
		if err != nil || string(theirs) != string(got) {
			t.Fatalf("got %q, net/http reads %q %v", got, theirs, err)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 304 \r\n\r\n", "HTTP/1.0 500\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, get bool) {
		method := map[bool]string{true: "GET", false: "HEAD"}[get]
		end, err := http1.Scan(data, 0)
		if err != nil || end == 0 {
			return
		}
		var a http1.Answer
		if a.Parse(string(data[:end]), method) != nil || a.Status < 200 {
			return
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http does not take what is taken here: %v: %q", err, data[:end])
		}
		length := theirs.ContentLength
		switch {
		case method == "HEAD" || a.Status == 204 || a.Status == 304:
			length = 0
		case slices.Contains(theirs.TransferEncoding, "chunked"):
			length = http1.Chunked
		case length < 0:
			length = http1.UntilClose
		}
		if theirs.StatusCode != a.Status || length != a.Length || theirs.Close && !a.Close {
			t.Fatalf("%q: got %+v, net/http reads %d, length %d, close %v", data[:end], a, theirs.StatusCode, length, theirs.Close)
		}
	})
}
