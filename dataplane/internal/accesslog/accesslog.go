// Package accesslog owns the edge's log of requests for people: a line of JSON each, in a file of this edge that no part of the
// system sends anywhere.
//
// It holds no secret, no path or query, no header and no address: what was asked for is named by API, route and method. It is no
// record of usage, which is the spool's: a request never waits for it. Lines gather in memory, at most Buffer bytes; what finds
// no room is dropped, and counted. A crash loses what was not written yet, a second's worth mostly. Log may be called by any
// number of goroutines at once; Run is called once.
package accesslog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Config of a Log. Path and Logger are required.
type Config struct {
	Path     string
	MaxBytes int64        // of a file, which is then moved to Path.1; 0: 256 MiB
	Sample   float64      // of requests, 0 to 1; 0: all. Those that ended with 5xx are always there
	Buffer   int          // bytes of lines that wait to be written; 0: 1 MiB
	Logger   *slog.Logger //
}

// Entry is one request.
type Entry struct {
	At                                time.Time
	ID                                [16]byte
	API, Route, Method                string
	Customer, Subscription, Plan, Key string
	Outcome, Served                   string
	Status, Attempts                  int
	In, Out                           int64
	Took, Waited                      time.Duration
	Cached, Relayed                   bool
}

// Log gathers entries.
type Log struct {
	cfg     Config
	below   uint16 // of the last two bytes of an id, which are random
	dropped atomic.Int64
	shared  atomic.Bool // another process writes to the file too
	wake    chan struct{}

	mu   sync.Mutex // covers all below; held for appending a line
	buf  []byte
	idle []byte // takes buf's place when that is written; Run's alone while it writes
}

const (
	every         = time.Second
	defaultBuffer = 1 << 20
)

// New makes a log; it writes nothing before Run.
func New(cfg Config) (*Log, error) {
	switch {
	case cfg.Path == "" || cfg.Logger == nil:
		return nil, errors.New("access log: Path and Logger are required")
	case cfg.Sample < 0 || cfg.Sample > 1:
		return nil, fmt.Errorf("access log: sample %v is outside 0 (all) to 1", cfg.Sample)
	case cfg.MaxBytes < 0 || cfg.Buffer < 0 || cfg.Buffer > 0 && cfg.Buffer < lineMost:
		return nil, fmt.Errorf("access log: files of %d bytes, and a buffer of %d, hold no line", cfg.MaxBytes, cfg.Buffer)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 256 << 20
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = defaultBuffer
	}
	l := &Log{cfg: cfg, below: 1<<16 - 1, wake: make(chan struct{}, 1), buf: make([]byte, 0, cfg.Buffer), idle: make([]byte, 0, cfg.Buffer)}
	if cfg.Sample > 0 {
		l.below = uint16(cfg.Sample * (1<<16 - 1))
	}
	return l, nil
}

// Dropped is how many lines found no room, or no disk. Of no log it is none.
func (l *Log) Dropped() int64 {
	if l == nil {
		return 0
	}
	return l.dropped.Load()
}

// Share has the log leave its file in place however long it is: another process writes to the same, and of two that move it the second
// would move what the first has just begun over what it has moved. Of no log it does nothing.
func (l *Log) Share() {
	if l != nil {
		l.shared.Store(true)
	}
}

// Wants says whether a request is one of the sample.
func (l *Log) Wants(id [16]byte, status int) bool {
	return uint16(id[14])<<8|uint16(id[15]) <= l.below || status >= 500
}

// Log takes an entry. It never waits for the disk.
func (l *Log) Log(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf)+lineMost > cap(l.buf) {
		l.dropped.Add(1)
		return
	}
	if l.buf = appendLine(l.buf, e); len(l.buf) > l.cfg.Buffer/2 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// lineMost is more than a line takes: names have at most 63 characters or so, and what is longer is cut.
const lineMost = 2048

func appendLine(b []byte, e *Entry) []byte {
	b = append(b, `{"time":"`...)
	b = e.At.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, `","request_id":"`...)
	const digits = "0123456789abcdef"
	for i, c := range e.ID {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = append(b, digits[c>>4], digits[c&15])
	}
	b = append(b, '"')
	for _, f := range [...][2]string{{"api", e.API}, {"route", e.Route}, {"method", e.Method}, {"outcome", e.Outcome}, {"served_region", e.Served},
		{"customer", e.Customer}, {"subscription", e.Subscription}, {"plan", e.Plan}, {"key_id", e.Key}} {
		if f[1] == "" {
			continue
		}
		b = append(append(append(b, `,"`...), f[0]...), `":"`...)
		for i := range min(len(f[1]), 128) {
			if c := f[1][i]; c >= 0x20 && c < 0x7f && c != '"' && c != '\\' { // names are of a-z, 0-9, '-' and '.': what else there is could be no name
				b = append(b, c)
			} else {
				b = append(b, '?')
			}
		}
		b = append(b, '"')
	}
	for _, f := range [...]struct {
		name string
		n    int64
	}{{"status", int64(e.Status)}, {"attempts", int64(e.Attempts)}, {"bytes_in", e.In}, {"bytes_out", e.Out}, {"duration_us", e.Took.Microseconds()}, {"upstream_us", e.Waited.Microseconds()}} {
		b = append(append(append(b, `,"`...), f.name...), `":`...)
		b = strconv.AppendInt(b, f.n, 10)
	}
	if e.Cached {
		b = append(b, `,"cached":true`...)
	}
	if e.Relayed {
		b = append(b, `,"relayed":true`...)
	}
	return append(b, "}\n"...)
}

// Run writes until ctx ends, and then what is left. A file that was moved or removed by somebody else is made anew.
func (l *Log) Run(ctx context.Context) error {
	var f *os.File
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := false
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-tick.C:
		case <-l.wake:
		}
		l.mu.Lock()
		lines := l.buf
		l.buf, l.idle = l.idle[:0], nil
		l.mu.Unlock()
		var err error
		if len(lines) > 0 {
			if f, err = l.open(f); err == nil {
				_, err = f.Write(lines)
			}
		}
		if err != nil {
			n := 0
			for _, c := range lines {
				if c == '\n' {
					n++
				}
			}
			l.dropped.Add(int64(n))
			if !failed {
				l.cfg.Logger.Warn("access log not written", "error", err)
			}
		}
		failed = err != nil
		l.mu.Lock()
		l.idle = lines[:0]
		l.mu.Unlock()
	}
	return nil
}

// open is the file to write to: the one that is open, if it still stands at its path and is not full.
func (l *Log) open(f *os.File) (*os.File, error) {
	if f != nil {
		is, err := f.Stat()
		at, errAt := os.Stat(l.cfg.Path)
		if err == nil && errAt == nil && os.SameFile(is, at) && (is.Size() < l.cfg.MaxBytes || l.shared.Load()) {
			return f, nil
		}
		f.Close()
		if err == nil && errAt == nil && os.SameFile(is, at) {
			if err := os.Rename(l.cfg.Path, l.cfg.Path+".1"); err != nil {
				return nil, err
			}
		}
	}
	return os.OpenFile(l.cfg.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}
