package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
)

// referenceConfig of the net/http reference: what the library alone costs with the same policy, and no product.
type referenceConfig struct{ HTTP, HTTPS, Upstream, Keys, Log, Certificate string }

type reference struct {
	customers map[string]string
	transport *http.Transport
	upstream  string
	start     time.Time

	mu   sync.Mutex // covers both
	full map[string]time.Duration
	log  *bufio.Writer
}

func serveReference(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var cfg referenceConfig
	if err := json.Unmarshal(data, &cfg); err != nil {
		return err
	}
	r := &reference{customers: map[string]string{}, full: map[string]time.Duration{}, upstream: cfg.Upstream, start: time.Now(),
		transport: &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}}
	keys, err := os.ReadFile(cfg.Keys)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(keys)) {
		key, customer, _ := strings.Cut(strings.TrimSpace(line), " ")
		r.customers[key] = customer
	}
	out, err := os.Create(cfg.Log)
	if err != nil {
		return err
	}
	r.log = bufio.NewWriterSize(out, 64<<10)
	certificate, err := tls.LoadX509KeyPair(cfg.Certificate, cfg.Certificate)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- (&http.Server{Addr: cfg.HTTP, Handler: r}).ListenAndServe() }()
	go func() {
		s := &http.Server{Addr: cfg.HTTPS, Handler: r, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
		ended <- s.ListenAndServeTLS("", "")
	}()
	go func() { ended <- echo(cfg.HTTPS, certificate) }()
	return <-ended
}

// echo answers each request over HTTP/3 with the same bytes and reads nothing of it but its end: what quic-go costs without
// anything that is HTTP.
func echo(at string, certificate tls.Certificate) error {
	l, err := quic.ListenAddr(at, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{http3.NextProtoH3}}, &quic.Config{MaxIncomingStreams: 250})
	if err != nil {
		return err
	}
	var section bytes.Buffer
	e := qpack.NewEncoder(&section)
	for _, f := range [][2]string{{":status", "200"}, {"content-length", "256"}, {"content-type", "text/plain"}, {"date", time.Now().UTC().Format(http.TimeFormat)}, {"x-request-id", strings.Repeat("x", 36)},
		{"bailiwick-edge", "eu-west"}, {"bailiwick-served", "eu-west"}, {"ratelimit", `"default";r=999999;t=1`}, {"ratelimit-policy", `"default";q=1000000;w=1`}} {
		e.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
	}
	answer := append(quicvarint.Append([]byte{1}, uint64(section.Len())), section.Bytes()...)
	answer = append(quicvarint.Append(append(answer, 0), 256), make([]byte, 256)...)
	one := func(s *quic.Stream) {
		var b [1024]byte
		for {
			if _, err := s.Read(b[:]); err == io.EOF {
				break
			} else if err != nil {
				return
			}
		}
		s.Write(answer)
		s.Close()
	}
	serve := func(c *quic.Conn) {
		if control, err := c.OpenUniStream(); err == nil {
			control.Write([]byte{0, 4, 0})
		}
		jobs := make(chan *quic.Stream)
		defer close(jobs)
		for {
			s, err := c.AcceptStream(context.Background())
			if err != nil {
				return
			}
			select {
			case jobs <- s:
			default:
				go func() {
					one(s)
					for s := range jobs {
						one(s)
					}
				}()
			}
		}
	}
	for {
		c, err := l.Accept(context.Background())
		if err != nil {
			return err
		}
		go serve(c)
	}
}

func (f *reference) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	customer, ok := f.customers[r.Header.Get("X-API-Key")]
	if !ok {
		http.Error(w, "no key", http.StatusUnauthorized)
		return
	}
	if !f.take(customer, began.Sub(f.start)) {
		http.Error(w, "too fast", http.StatusTooManyRequests)
		return
	}
	header := r.Header.Clone()
	for _, h := range []string{"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Api-Key"} {
		header.Del(h)
	}
	header.Set("X-Forwarded-For", r.RemoteAddr)
	out := &http.Request{Method: r.Method, URL: &url.URL{Scheme: "http", Host: f.upstream, Path: r.URL.Path, RawQuery: r.URL.RawQuery}, Host: r.Host, Header: header, Body: r.Body, ContentLength: r.ContentLength}
	response, err := f.transport.RoundTrip(out.WithContext(r.Context()))
	if err != nil {
		http.Error(w, "upstream", http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	n, _ := io.Copy(w, response.Body)
	f.mu.Lock()
	fmt.Fprintf(f.log, `{"time":%q,"customer":%q,"method":%q,"uri":%q,"status":%d,"out":%d,"took":%f}`+"\n",
		began.Format(time.RFC3339), customer, r.Method, r.URL.RequestURI(), response.StatusCode, n, time.Since(began).Seconds())
	f.mu.Unlock()
}

// take is GCRA at 100,000 a second.
func (f *reference) take(customer string, now time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := max(f.full[customer], now) + 10*time.Microsecond
	if next-now > time.Second {
		return false
	}
	f.full[customer] = next
	return true
}
