package adminapi

import (
	"fmt"
	"testing"
	"time"

	"bailiwick/shared/fault"
)

// One operator's loop is held to the rate, others notice nothing, and what is remembered is bounded.
func TestMeter_HoldsEachOperatorToTheRate(t *testing.T) {
	m := newMeter(100)
	now := time.Unix(1_800_000_000, 0)
	calls := func(name string, n int) (let int) {
		for range n {
			err := m.take(name, now)
			if err == nil {
				let++
			} else if fault.ReasonOf(err) != "RATE_EXCEEDED" || fault.KindOf(err) != fault.Exhausted {
				t.Fatal(err)
			}
		}
		return let
	}
	if got := calls("loop", 1000); got != 201 {
		t.Errorf("at once: %d, want two seconds' worth", got)
	}
	if got := calls("other", 10); got != 10 {
		t.Errorf("another operator: %d of 10", got)
	}
	now = now.Add(time.Second)
	if got := calls("loop", 1000); got != 100 {
		t.Errorf("a second later: %d, want 100", got)
	}
	now = now.Add(time.Minute)
	if err := m.takes("many", 200, now); err != nil { // a call that counts as many
		t.Error(err)
	}
	if got := calls("many", 10); got != 1 {
		t.Errorf("after two seconds' worth in one call: %d, want 1", got)
	}
	now = now.Add(time.Hour)
	for i := range 2 * maxCallers {
		now = now.Add(time.Second)
		calls(fmt.Sprint(i), 1)
	}
	if len(m.callers) > maxCallers {
		t.Errorf("%d operators are remembered", len(m.callers))
	}
}
