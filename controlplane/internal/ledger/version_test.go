package ledger_test

import (
	"testing"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// asVersionOne is a command as the release before wrote it.
func asVersionOne(cmd []byte) []byte {
	cmd[0] = 1
	return cmd
}

// A node that is updated replays the log it has on disk.
func TestMachine_ReplaysALogOfVersionOne(t *testing.T) {
	old, now := openMem(t), openMem(t)
	c := &chain{edge: "e", epoch: 1}
	free := func(n int, requests int64) map[usage.Cell]usage.Sums { // units are also counted for quotas, since version 2
		return map[usage.Cell]usage.Sums{cell("acme", n): {Requests: requests}}
	}
	blocks := []ledger.Block{c.next(free(0, 1)), c.next(free(5, 3))}
	said := []ledger.Said{{Edge: "e", Epoch: 1, Sealed: 4, Seq: 2, MS: 9}}
	applyCmd(t, old, asVersionOne(ledger.EncodeAppend(blocks)))
	applyCmd(t, old, asVersionOne(ledger.EncodeSealed(said)))
	applyCmd(t, now, ledger.EncodeAppend(blocks))
	applyCmd(t, now, ledger.EncodeSealed(said))
	if got := requests(t, old, "acme"); got != 4 {
		t.Errorf("requests: got %d, want 4", got)
	}
	if a, b := epochOf(t, old, "e", 1), epochOf(t, now, "e", 1); a != b {
		t.Errorf("epoch: got %+v of version 1 and %+v of version 2, want them the same", a, b)
	}
	applyCmd(t, old, ledger.EncodeClose("e", 1, 4))
	if a := apply(t, old, c.next(one("acme", 0, 1)))[0]; a.Reason != ledger.ReasonEpochClosed {
		t.Errorf("block after the close of version 1: got %q, want %s", a.Reason, ledger.ReasonEpochClosed)
	}
}
