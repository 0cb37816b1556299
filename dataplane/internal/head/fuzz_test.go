package head

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"bailiwick/dataplane/internal/http1"
)

// A list of fields that is a request over HTTP/2 and HTTP/3 is written out as text on its way: what is taken here is one request to
// whoever reads that text, the same one, and nothing of it is read as another line.
func FuzzBlock(f *testing.F) {
	usual := ":method\nGET\n:scheme\nhttps\n:authority\na.test\n:path\n/x?y=z\n"
	for _, s := range []string{usual, usual + "cookie\na=b\ncookie\nc=d\nx-a\n1", usual + "host\nA.test\ncontent-length\n5\nte\ntrailers", usual + "content-length\n1\ncontent-length\n1", usual + "x\n1\r",
		":method\nGET / HTTP/1.1\n:scheme\nhttps\n:path\n/\nhost\na.test", ":method\nCONNECT\n:authority\na.test:1", usual + "transfer-encoding\nchunked", usual + "X\n1", usual + "x_y\n\t", usual + "x.api~key\nk\nx-forwarded-ssl\non", ":method\nOPTIONS\n:scheme\nhttp\n:authority\na\n:path\n*", usual + ":path\n/"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, ended bool) {
		parts := strings.Split(text, "\n")
		h := &Block{Most: 8 << 10, Text: make([]byte, 0, 64<<10)}
		for i := 0; i+1 < len(parts); i += 2 {
			h.Add(parts[i], parts[i+1])
		}
		if h.TooBig {
			return
		}
		given := slices.Clone(h.Fields)
		var r http1.Request
		declared, ok := h.Parse(&r, ended)
		if !ok || r.Method == http.MethodConnect || r.Authority == "" {
			return // refused, here or in words
		}
		if declared < -1 || ended && (declared > 0 || r.Length > 0) || !ended && declared < 0 && r.Length != http1.Chunked {
			t.Fatalf("%q: a body of %d, declared %d, ended %v", text, r.Length, declared, ended)
		}
		var out strings.Builder
		fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.Target, r.Authority)
		var want []string
		for _, x := range r.Fields {
			if x.Kind == http1.Other {
				fmt.Fprintf(&out, "%s: %s\r\n", x.Name, x.Value)
				want = append(want, http.CanonicalHeaderKey(x.Name)+": "+x.Value)
			}
		}
		out.WriteString("\r\n")
		var again http1.Request
		if err := again.Parse(out.String()); err != nil {
			t.Fatalf("%q: taken, and what is written of it is not: %v", text, err)
		}
		if again.Method != r.Method || again.Target != r.Target || again.Path != r.Path || again.Query != r.Query || again.HasQuery != r.HasQuery || again.Plain != r.Plain || again.Authority != r.Authority || again.Aliases != r.Aliases {
			t.Fatalf("%q: %+v, written and read again %+v", text, r, again)
		}
		in := bufio.NewReader(strings.NewReader(out.String()))
		theirs, err := http.ReadRequest(in)
		if err != nil {
			if strings.Contains(err.Error(), "parse \"") || strings.Contains(err.Error(), "invalid URL") || strings.Contains(err.Error(), "malformed Host") { // the proxy parses both, and refuses
				return
			}
			t.Fatalf("%q: net/http does not take what is written of it: %v", text, err)
		}
		var got []string
		for name, values := range theirs.Header {
			for _, v := range values {
				got = append(got, name+": "+v)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if theirs.Method != r.Method || theirs.RequestURI != r.Target || theirs.Host != r.Authority || in.Buffered() > 0 || !slices.Equal(got, want) {
			t.Fatalf("%q: %+v with %q, net/http reads %s %s of %s with %q and %d bytes behind it", text, r, want, theirs.Method, theirs.RequestURI, theirs.Host, got, in.Buffered())
		}
		var cookies []string
		for _, x := range given {
			if x.Name == "cookie" {
				cookies = append(cookies, x.Value)
			}
		}
		if n := len(theirs.Header["Cookie"]); n > 1 || strings.Join(theirs.Header["Cookie"], "") != strings.Join(cookies, "; ") {
			t.Fatalf("%q: %d cookies, %q", text, n, theirs.Header["Cookie"])
		}
	})
}

// What is coded reads as it was, and as x/net's reader has it; nothing that it refuses is taken.
func FuzzUnhuffman(f *testing.F) {
	f.Add([]byte("\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, coded []byte) {
		got, ok := Unhuffman(nil, coded, 2*len(coded))
		want, err := hpack.HuffmanDecodeToString(coded)
		if ok != (err == nil) || ok && string(got) != want {
			t.Fatalf("%x: %q %v, x/net reads %q %v", coded, got, ok, want, err)
		}
	})
}
