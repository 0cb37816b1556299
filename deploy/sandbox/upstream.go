package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// upstream is the sandbox's sample service. It answers any path, tells what it received, and counts what it
// answered, so that a test can compare it with what was billed.
type upstream struct {
	api, region string
	requests    atomic.Int64
	status      atomic.Int64 // set by POST /__fail: what to answer instead of 200; 0 = behave
}

func runUpstream(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("upstream", flag.ContinueOnError)
	listen := flags.String("listen", "", "host:port")
	api := flags.String("api", "", "API name shown in answers")
	region := flags.String("region", "", "region shown in answers")
	if err := flags.Parse(args); err != nil {
		return err
	}
	u := &upstream{api: *api, region: *region}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("upstream %s@%s: %w", *api, *region, err)
	}
	server := &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/__count":
		writeJSON(w, http.StatusOK, map[string]any{"requests": u.requests.Load()})
		return
	case "/__fail": // POST /__fail?status=503 makes every later answer a 503; ?status=0 ends it
		n, err := strconv.Atoi(r.URL.Query().Get("status"))
		if err != nil || r.Method != http.MethodPost || (n != 0 && (n < 400 || n > 599)) {
			writeJSON(w, http.StatusBadRequest, map[string]any{"error": "POST /__fail?status=400..599, or 0 to behave again"})
			return
		}
		u.status.Store(int64(n))
		writeJSON(w, http.StatusOK, map[string]any{"status": n})
		return
	}
	forced := int(u.status.Load())
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") { // health probes are not counted
		if forced == 0 {
			forced = http.StatusOK
		}
		w.WriteHeader(forced)
		return
	}
	query := r.URL.Query()
	if d, err := time.ParseDuration(query.Get("delay")); err == nil && d > 0 {
		select {
		case <-time.After(min(d, time.Minute)):
		case <-r.Context().Done():
		}
	}
	io.Copy(io.Discard, io.LimitReader(r.Body, 64<<20))
	status := http.StatusOK
	if n, err := strconv.Atoi(query.Get("status")); err == nil && n >= 200 && n <= 599 {
		status = n
	}
	if forced != 0 {
		status = forced
	}
	u.requests.Add(1) // counted before the answer leaves: answered ≥ seen by anyone
	if n, err := strconv.Atoi(query.Get("bytes")); err == nil && n > 0 {
		n = min(n, 256<<20)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.WriteHeader(status)
		chunk := make([]byte, 32<<10)
		for n > 0 {
			m, err := w.Write(chunk[:min(n, len(chunk))])
			if err != nil {
				return
			}
			n -= m
		}
		return
	}
	headers := map[string]string{}
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ", ")
	}
	writeJSON(w, status, map[string]any{"api": u.api, "region": u.region, "path": r.URL.Path, "method": r.Method, "headers": headers})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	w.Write(data)
}
