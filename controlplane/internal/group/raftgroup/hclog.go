package raftgroup

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// hclogger lets raft speak through slog, one level lower than it thinks: what
// the operator needs of elections the node says itself. A message repeated
// within quiet is dropped, because raft reports every failed heartbeat to every
// dead peer.
type hclogger struct {
	hclog.Logger // a null logger: the methods below are all that raft calls
	slog         *slog.Logger
	said         *said
}

const quiet = 5 * time.Second

type said struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newHclog(l *slog.Logger) hclog.Logger {
	return &hclogger{Logger: hclog.NewNullLogger(), slog: l.With("source", "raft"), said: &said{last: make(map[string]time.Time)}}
}

func (h *hclogger) emit(level slog.Level, msg string, args []any) {
	if !h.slog.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]any, 0, len(args))
	key := msg
	for i := 0; i+1 < len(args); i += 2 {
		v := args[i+1]
		if f, ok := v.(hclog.Format); ok && len(f) > 0 {
			v = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		attrs = append(attrs, fmt.Sprint(args[i]), v)
		if fmt.Sprint(args[i]) == "peer" {
			key += fmt.Sprint(v)
		}
	}
	if level >= slog.LevelWarn {
		now := time.Now()
		h.said.mu.Lock()
		again := now.Sub(h.said.last[key]) < quiet
		if !again {
			h.said.last[key] = now
		}
		h.said.mu.Unlock()
		if again {
			return
		}
	}
	h.slog.Log(context.Background(), level, msg, attrs...)
}

func (h *hclogger) Log(l hclog.Level, msg string, args ...any) {
	switch {
	case l >= hclog.Error:
		h.Error(msg, args...)
	case l == hclog.Warn:
		h.Warn(msg, args...)
	default:
		h.Info(msg, args...)
	}
}
func (h *hclogger) Trace(string, ...any)          {}
func (h *hclogger) Debug(string, ...any)          {}
func (h *hclogger) Info(msg string, args ...any)  { h.emit(slog.LevelDebug, msg, args) }
func (h *hclogger) Warn(msg string, args ...any)  { h.emit(slog.LevelInfo, msg, args) }
func (h *hclogger) Error(msg string, args ...any) { h.emit(slog.LevelWarn, msg, args) }
func (h *hclogger) IsTrace() bool                 { return false }
func (h *hclogger) IsDebug() bool                 { return false }
func (h *hclogger) IsInfo() bool                  { return true }
func (h *hclogger) IsWarn() bool                  { return true }
func (h *hclogger) IsError() bool                 { return true }
func (h *hclogger) Named(string) hclog.Logger     { return h }
func (h *hclogger) ResetNamed(string) hclog.Logger {
	return h
}

func (h *hclogger) With(args ...any) hclog.Logger {
	return &hclogger{Logger: h.Logger, slog: h.slog.With(args...), said: h.said}
}

func (h *hclogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
func (h *hclogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
