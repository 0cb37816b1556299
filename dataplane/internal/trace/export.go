package trace

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const (
	every       = time.Second      // spans wait so long, unless there are many
	batch       = 512              // spans in one request
	sendTimeout = 10 * time.Second // of one request
	tries       = 5                // of one batch; then it is dropped
	lastWord    = 2 * time.Second  // for what is left when the edge ends
	patience    = 30 * time.Second // between two tries, whatever a receiver says
)

// newClient asks no proxy of the environment and follows nobody elsewhere: the receiver is the one that was named.
func newClient(roots *x509.CertPool) *http.Client {
	return &http.Client{Timeout: sendTimeout,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, MaxConnsPerHost: 1, IdleConnTimeout: 90 * time.Second, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Run sends what traces leave until ctx ends, and then what is left, for a moment.
func (t *Tracer) Run(ctx context.Context) error {
	defer t.client.CloseIdleConnections()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
			defer cancel()
			t.flush(last)
			return nil
		case <-tick.C:
		case <-t.wake:
		}
		t.flush(ctx)
	}
}

// flush sends what waits now.
func (t *Tracer) flush(ctx context.Context) {
	t.mu.Lock()
	spans := t.waiting
	t.waiting, t.spare = t.spare[:0], nil
	t.mu.Unlock()
	var body []byte
	for rest := spans; len(rest) > 0; {
		some := rest[:min(batch, len(rest))]
		rest = rest[len(some):]
		body = appendRequest(body[:0], &t.cfg.Edge, some)
		lost := t.deliver(ctx, body, int64(len(some)))
		t.sent.Add(int64(len(some)) - lost)
		t.dropped.Add(lost)
	}
	clear(spans)
	t.mu.Lock()
	t.spare = spans[:0]
	t.mu.Unlock()
}

// deliver sends one batch, several times if need be, and says how many spans of it were lost.
func (t *Tracer) deliver(ctx context.Context, body []byte, n int64) (lost int64) {
	for try := 1; ; try++ {
		lost, wait, err := t.post(ctx, body)
		if err == nil {
			t.complains = false
			return min(max(lost, 0), n) // it may say any number
		}
		t.failures.Add(1)
		if !t.complains {
			t.complains = true
			t.cfg.Logger.Warn("traces not delivered", "error", err)
		}
		if wait < 0 || try == tries {
			return n
		}
		timer := time.NewTimer(min(max(wait, time.Second<<(try-1)), patience))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return n
		}
	}
}

// post sends one request. wait is after which time it may be sent again; below 0: never.
func (t *Tracer) post(ctx context.Context, body []byte) (lost int64, wait time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.cfg.Endpoint, bytes.NewReader(body))
	if err != nil {
		return 0, -1, fmt.Errorf("send traces: %w", err)
	}
	for name, values := range t.cfg.Header {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", "bailiwick-edge")
	resp, err := t.client.Do(r)
	if err != nil {
		return 0, 0, fmt.Errorf("send traces: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	switch s := resp.StatusCode; {
	case s/100 == 2 && err != nil: // it took them, and who knows what it said
		return 0, 0, nil
	case s/100 == 2:
		return rejected(answer), 0, nil
	case s == 429 || s == 502 || s == 503 || s == 504:
		if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n >= 0 {
			wait = time.Duration(min(n, int(patience/time.Second))) * time.Second
		}
		return 0, wait, fmt.Errorf("send traces: the receiver answers %d", s)
	default:
		return 0, -1, fmt.Errorf("send traces: the receiver answers %d", s)
	}
}
