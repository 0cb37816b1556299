package evidence

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

// setBack is the store after a restore that kept the history up to a transaction.
func (h *history) setBack(kept uint64) {
	h.epoch = max(9, h.epoch+1)
	r := model.Recovery{Zone: "emea", Node: "emea-1", Groups: []model.RecoveredGroup{{Group: "store/emea", Incarnation: h.epoch, Last: kept, Kept: &kept}}}
	key := model.PrefixRecovery + fmt.Sprint(h.epoch)
	kv := map[string]group.KV{key: {Key: key, Value: model.Encode(r), ModIndex: kept + 1}}
	for before, was := range h.store.kv {
		if was.ModIndex <= kept {
			kv[before] = was
		}
	}
	*h.store = snapshot{rev: group.Revision{Epoch: h.epoch, Index: kept + 1}, kv: kv}
}

// While a node is away its store is set back twice, the second time to a transaction that lies beyond the node's log and is
// not of its history: the log goes on from where all three agree.
func TestLog_IsCutWhereItsStoreWasSetBackFirst(t *testing.T) {
	h := newHistory(t)
	h.store = &snapshot{}
	h.log.file.Close()
	h.log = h.open()
	h.rules()
	h.write("acme")
	kept := h.index
	h.write("bolt")
	h.setBack(kept)
	h.setBack(kept + 20)
	if n := len(h.store.kv); n != 2 {
		t.Fatalf("the store tells of %d recoveries, want both", n)
	}
	if got, ahead, err := h.log.kept(); got != kept || !ahead || err != nil {
		t.Errorf("the log may go on from %d (ahead: %t, %v), want %d", got, ahead, err, kept)
	}
}

// A log that is ahead of a store that was set back tells nobody of what never was, ends its node, and goes on at the next
// start from where the store's history still holds, byte for byte; cut short, the swap is done again.
func TestLog_IsCutWhereItsStoreWasSetBack(t *testing.T) {
	for _, broken := range []bool{false, true} {
		h := newHistory(t)
		h.store = &snapshot{}
		h.log.file.Close()
		h.log = h.open()
		h.rules()
		h.write("acme")
		h.grant(3)
		h.head()
		short, err := h.log.Leaves(0, maxLeavesOfTest)
		if err != nil {
			t.Fatal(err)
		}
		kept := h.index
		h.close()
		h.head()
		h.setBack(kept)
		if _, err := h.log.Leaves(0, maxLeavesOfTest); fault.ReasonOf(err) != ReasonSetBack {
			t.Errorf("a log ahead of its store tells: %v, want %s", err, ReasonSetBack)
		}
		err = h.log.setBack(t.Context())
		var disk *diskError
		if fault.ReasonOf(err) != ReasonSetBack || !errors.As(err, &disk) {
			t.Fatalf("set back: %v, want %s, which ends the node", err, ReasonSetBack)
		}
		if err := h.log.close(); err != nil {
			t.Fatal(err)
		}
		if broken { // as if the start had ended between its two renames
			if err := os.Rename(h.dir, h.dir+".aside-1"); err != nil {
				t.Fatal(err)
			}
		}
		h.log = h.open()
		now, err := h.log.Leaves(0, maxLeavesOfTest)
		if err != nil || now.Through != kept || !slices.EqualFunc(now.Leaves, short.Leaves, func(a, b []byte) bool { return string(a) == string(b) }) {
			t.Fatalf("after the cut: %d leaves through %d, %v; want the %d up to %d", len(now.Leaves), now.Through, err, len(short.Leaves), kept)
		}
		h.index = kept
		h.chain, h.kv = map[string]model.RelayMinute{}, map[string]group.KV{}
		h.write("bolt")
		if err := h.log.setBack(t.Context()); err != nil {
			t.Errorf("a log that goes on in the new epoch: %v", err)
		}
		if after, err := h.log.Leaves(0, maxLeavesOfTest); err != nil || len(after.Leaves) <= len(now.Leaves) || after.Through != kept+1 {
			t.Errorf("it goes on with %d leaves through %d, %v", len(after.Leaves), after.Through, err)
		}
	}
}

const maxLeavesOfTest = 1000
