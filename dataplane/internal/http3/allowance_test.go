package http3

import (
	"testing"
	"testing/synctest"
	"time"
)

// What brings no request any further is paid for, and who has used up what he may is ended for that; waiting and answers earn some,
// and no more than there was at first.
func TestConn_AnAllowanceIsSpentAndEarned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, x := range map[string]struct {
			earn func(c *Conn)
			want int
		}{
			"nothing":            {func(*Conn) {}, 0},
			"a second":           {func(*Conn) { time.Sleep(time.Second) }, allowanceSecond},
			"an hour":            {func(*Conn) { time.Sleep(time.Hour) }, allowance},
			"an answer":          {func(c *Conn) { c.busy++; c.wg.Add(1); c.ended(0, true, true) }, allowanceAnswer},
			"what has no answer": {func(c *Conn) { c.busy++; c.wg.Add(1); c.ended(0, true, false) }, 0},
		} {
			ended := Code(0)
			c := &Conn{tokens: allowance, refilled: time.Now(), end: func(code Code) { ended = code }}
			if !c.spent(allowance) || ended != 0 {
				t.Fatalf("%s: the allowance itself is too much", name)
			}
			x.earn(c)
			got := 0
			for c.spent(1) {
				if got++; got > 2*allowance {
					break
				}
			}
			if got < x.want || got > x.want+1 || ended != ExcessiveLoad { // the one with which the time that has passed is looked at is free
				t.Errorf("%s earns %d, want %d; it ends with %#x, want %#x", name, got, x.want, ended, ExcessiveLoad)
			}
		}
	})
}
