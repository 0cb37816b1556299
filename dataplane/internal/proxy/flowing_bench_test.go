package proxy_test

import (
	"io"
	"net/http"
	"testing"
)

// BenchmarkFlow is what an answer of 64 KiB costs over each protocol, its client and its upstream with it.
//
//	go test -run '^$' -bench Flow ./dataplane/internal/proxy
func BenchmarkFlow(b *testing.B) {
	w := newWorld(b, patient)
	text := make([]byte, 64<<10)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { rw.Write(text) })
	for _, v := range w.vias() {
		b.Run(v.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				resp, err := v.ask(b.Context(), w, "GET", "/v1/x", nil)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); n != int64(len(text)) || err != nil {
					b.Fatalf("%d bytes, %v", n, err)
				}
				resp.Body.Close()
			}
		})
	}
}
