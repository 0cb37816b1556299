package edgetls

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	"go.uber.org/zap/zapcore"
)

// slogCore lets certmagic's zap logger write to slog.
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

// level shifts certmagic down: what it calls information is a diary of every
// step. Its errors are of single attempts, which Run reports once for the host.
func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l >= zapcore.WarnLevel:
		return slog.LevelWarn
	case l >= zapcore.InfoLevel:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.log.Enabled(context.Background(), level(l))
}

func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{c.log, slices.Concat(c.fields, f)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, x := range slices.Concat(c.fields, f) {
		x.AddTo(enc)
	}
	attrs := []slog.Attr{slog.String("logger", e.LoggerName)}
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		switch k {
		case "remote", "remote_ip", "remote_port", "remote_addr":
			continue // a client's address is personal data
		}
		attrs = append(attrs, slog.Any(k, enc.Fields[k]))
	}
	c.log.LogAttrs(context.Background(), level(e.Level), "certmagic: "+e.Message, attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }
