package main

import (
	"os"
	"strings"
)

// screen is standard output, which may be a terminal.
type screen struct{ *os.File }

// Terminal says whether somebody is looking.
func (s screen) Terminal() bool {
	info, err := s.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// live says whether results go to a terminal that can do more than append.
func (a *app) live() bool {
	t, ok := a.out.(interface{ Terminal() bool })
	return ok && t.Terminal() && a.getenv("TERM") != "dumb"
}

// warn marks text that deserves a look, where colours are wanted (no-color.org).
func (a *app) warn(text string) string {
	if a.live() && a.getenv("NO_COLOR") == "" {
		return "\x1b[33m" + text + "\x1b[0m"
	}
	return text
}

// sparks has nothing for nothing: the lowest block is the least that there is.
var sparks = []rune(" ▁▂▃▄▅▆▇█")

// sparkline draws numbers that are not negative on one line, the largest as the highest block.
func sparkline(values []int64) string {
	var top int64
	for _, v := range values {
		top = max(top, v)
	}
	var b strings.Builder
	for _, v := range values {
		level := 0
		if v > 0 {
			level = 1 + int(float64(v)/float64(top)*float64(len(sparks)-2)+0.5)
			level = min(level, len(sparks)-1)
		}
		b.WriteRune(sparks[level])
	}
	return b.String()
}
