// Package telemetry owns what a process says about itself: the *slog.Logger,
// the metrics registry, and the admin mux with health, readiness and metrics.
//
// It never decides what is logged, adapts no library's logger (adapters live
// with the library's owner) and holds no personal data: only roots and cmd
// import it, everybody else is handed a *slog.Logger. Nothing survives a crash.
// All it returns may be used at once.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync/atomic"
)

// CheckLogging tells whether NewLogger understands level and format, for a
// Config's Validate.
func CheckLogging(level, format string) error {
	if _, err := parseLevel(level); err != nil {
		return err
	}
	if format != "" && format != "text" && format != "json" {
		return fmt.Errorf("log format %q is neither text nor json", format)
	}
	return nil
}

func parseLevel(level string) (l slog.Level, err error) {
	if level == "" {
		return slog.LevelInfo, nil
	}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return slog.LevelInfo, fmt.Errorf("log level %q is none of debug, info, warn, error", level)
	}
	return l, nil
}

// NewLogger writes to w at level ("" is info) in format ("" is text). Text that
// CheckLogging refuses reads as the default: a process with a mistyped level
// must still be able to say so. program and node go on every line.
func NewLogger(w io.Writer, level, format, program, node string) *slog.Logger {
	l, _ := parseLevel(level)
	masked := new(atomic.Int64)
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if !names[a.Key] {
			masked.Add(1)
			return slog.String(a.Key, unlisted)
		}
		return redact(a)
	}}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	log := slog.New(listed{h, masked}).With("program", program)
	if node != "" {
		log = log.With("node", node)
	}
	return log
}

// unlisted stands for the value of an attribute that nobody decided about.
const unlisted = "[not on the list of names]"

// listed is a handler that masks attributes with other names than Names lists, and counts them.
type listed struct {
	slog.Handler
	masked *atomic.Int64
}

func (h listed) WithAttrs(attrs []slog.Attr) slog.Handler {
	return listed{h.Handler.WithAttrs(attrs), h.masked}
}
func (h listed) WithGroup(name string) slog.Handler {
	return listed{h.Handler.WithGroup(name), h.masked}
}

// Masked counts attributes that a logger of NewLogger, and all that were made of it, masked because of their names.
func Masked(l *slog.Logger) int64 {
	if h, ok := l.Handler().(listed); ok {
		return h.masked.Load()
	}
	return 0
}

// redact blanks attributes by name, and the secret of an API key wherever one stands in a text: a message, an error
// that quotes what it could not parse, what a library says. It is the second net: types such as apikey.Text redact
// themselves. It cannot see inside a logged struct.
func redact(a slog.Attr) slog.Attr {
	if secretName(a.Key) {
		return slog.String(a.Key, "[redacted]")
	}
	var text string
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			text = x.Error()
		case fmt.Stringer:
			text = x.String()
		case []byte:
			text = string(x)
		}
	}
	if strings.Contains(text, "bw_") {
		if clean := keyText.ReplaceAllString(text, "${1}[redacted]"); clean != text {
			return slog.String(a.Key, clean)
		}
	}
	return a
}

// keyText is an API key up to its id, which may be shown, and what follows, whole or in part.
var keyText = regexp.MustCompile(`(bw_[a-z][a-z0-9-]{0,31}_[0-9A-Za-z]{12}_)[0-9A-Za-z]+`)

// secretName leaves ids alone: "key_id" and "token_id" are what a log is for.
func secretName(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "-", "_")
	if i := strings.LastIndexByte(name, '_'); i >= 0 {
		name = name[i+1:] // api_key, x-api-key, join_token, proxy-authorization
	}
	switch name {
	case "key", "apikey", "secret", "token", "authorization", "password", "pepper", "cookie":
		return true
	}
	return false
}
