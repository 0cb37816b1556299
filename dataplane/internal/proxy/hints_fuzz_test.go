package proxy_test

import (
	"bufio"
	"bytes"
	"net/http"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/proxy"
)

// The values of Link in what an upstream says early are those that net/http reads, and of them the client is told the first 32
// within 16 KiB, eight times at most, and nothing else of the hint or of the answer to come.
func FuzzHints(f *testing.F) {
	for _, s := range []string{"Link: </a.css>; rel=preload", "Link: </a>\r\nlink: </b>\r\nX-Link: no\r\nSet-Cookie: a=b", "X: y", "LINK:\t </a> \t", "Link:", "Link: a\x80\xff",
		"Link: " + strings.Repeat("a", 9<<10) + "\r\nLink: " + strings.Repeat("b", 9<<10), strings.Repeat("Link: a\r\n", 40) + "Link: b", "Link: a\r\n b", "Link : a", "Content-Length: 5\r\nLink: a"} {
		f.Add([]byte("HTTP/1.1 103 Early Hints\r\n" + s + "\r\n\r\n"))
	}
	f.Add([]byte("HTTP/1.0 103 \r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		links, told, taken := proxy.Hinted(said)
		if !taken {
			return
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(said)), nil)
		if err != nil {
			t.Fatalf("%q: taken here, and not by net/http: %v", said, err)
		}
		if want := theirs.Header.Values("Link"); !slices.Equal(links, want) {
			t.Fatalf("%q: got %q, net/http reads %q", said, links, want)
		}
		if len(told) > 8 || len(links) == 0 && len(told) > 0 {
			t.Fatalf("%q: the client is told %d times", said, len(told))
		}
		for _, h := range told {
			got, size := h["Link"], 0
			for _, l := range got {
				size += len(l)
			}
			if len(h) != 1 || len(got) == 0 || len(got) > 32 || size > 16<<10 || !slices.Equal(got, links[:len(got)]) || len(got) < min(len(links), 32) && size+len(links[len(got)]) <= 16<<10 {
				t.Fatalf("%q: of %d links the client is told %q", said, len(links), h)
			}
		}
	})
}
