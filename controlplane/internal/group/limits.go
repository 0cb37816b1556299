package group

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"bailiwick/shared/fault"
)

// The limits of a transaction. They keep one Raft entry far below the RPC
// deadline on a slow link and inside etcd's default request limit of 1.5 MiB.
const (
	MaxKey       = 512       // bytes of a key or prefix
	MaxValue     = 512 << 10 // bytes of one value
	MaxRequestID = 128       // bytes
	MaxOps       = 128       // compares, and ops, of an ordinary transaction
	MaxBytes     = 1 << 20   // keys and values of an ordinary transaction together
	MaxBulkOps   = 4096      // compares, and ops, of a bulk transaction, if together they hold
	MaxBulkBytes = 512 << 10 // no more than this

	// RememberedRequests is how many of the latest request ids a group remembers.
	RememberedRequests = 65_536
	// RememberedEvents is how many of the latest events a node keeps for its watches.
	RememberedEvents = 65_536
)

// Reasons of a Store's errors.
const (
	ReasonTooLarge       = "TOO_LARGE"       // kind TooLarge
	ReasonKeyInvalid     = "KEY_INVALID"     // kind Invalid
	ReasonOpsOverlap     = "OPS_OVERLAP"     // kind Invalid
	ReasonCompacted      = "COMPACTED"       // kind Conflict
	ReasonNoLeader       = "NO_LEADER"       // kind Unavailable
	ReasonNotLeader      = "NOT_LEADER"      // kind Unavailable
	ReasonOutcomeUnknown = "OUTCOME_UNKNOWN" // kind Unavailable
	ReasonBusy           = "GROUP_BUSY"      // kind Unavailable
	ReasonStopped        = "STORE_STOPPED"   // kind Unavailable
	ReasonClosed         = "WATCH_CLOSED"    // kind Unavailable
)

// ErrCompacted is the error of a Watch whose first index is not remembered.
func ErrCompacted(group string, wanted, first uint64) error {
	return fault.New(fault.Conflict, ReasonCompacted,
		"watch %s from %d: history begins at %d: list again and watch from there", group, wanted, first)
}

// Validate refuses what no engine may commit: every engine calls it first, so
// that one that would take more does not let callers grow used to it. Messages
// carry no key and no value: a key may hold a customer's name.
func (t Txn) Validate() error {
	if n := len(t.RequestID); n > MaxRequestID {
		return tooLarge("request id holds %d bytes, at most %d are allowed", n, MaxRequestID)
	}
	if n := len(t.Compares); n > MaxBulkOps {
		return tooLarge("transaction holds %d compares, at most %d are allowed", n, MaxBulkOps)
	}
	if n := len(t.Ops); n > MaxBulkOps {
		return tooLarge("transaction holds %d operations, at most %d are allowed", n, MaxBulkOps)
	}
	total := 0
	for i, c := range t.Compares {
		if err := checkKey(fmt.Sprintf("compares[%d].key", i), c.Key); err != nil {
			return err
		}
		total += len(c.Key)
	}
	for i, op := range t.Ops {
		field := fmt.Sprintf("ops[%d]", i)
		if err := checkKey(field+".key", op.Key); err != nil {
			return err
		}
		if op.Delete && op.DeletePrefix {
			return fault.New(fault.Invalid, ReasonOpsOverlap, "%s deletes both a key and a prefix: choose one", field).At(field)
		}
		if op.Delete || op.DeletePrefix {
			total += len(op.Key)
			continue
		}
		if n := len(op.Value); n > MaxValue {
			return tooLarge("%s.value holds %d bytes, at most %d are allowed", field, n, MaxValue)
		}
		total += len(op.Key) + len(op.Value)
	}
	bulk := len(t.Ops) > MaxOps || len(t.Compares) > MaxOps
	if bulk && total > MaxBulkBytes {
		return tooLarge("transaction of more than %d operations holds %d bytes, at most %d are allowed: split it", MaxOps, total, MaxBulkBytes)
	}
	if total > MaxBytes {
		return tooLarge("transaction holds %d bytes, at most %d are allowed: split it", total, MaxBytes)
	}
	return checkOverlap(t.Ops)
}

// checkOverlap refuses two ops that touch one key. Sorted by key, whatever a
// prefix covers follows it directly, so neighbours tell all.
func checkOverlap(ops []Op) error {
	if len(ops) < 2 {
		return nil
	}
	order := make([]int, len(ops))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if c := strings.Compare(ops[a].Key, ops[b].Key); c != 0 {
			return c
		}
		// A prefix equal to a key covers it, so it has to come first.
		switch {
		case ops[a].DeletePrefix && !ops[b].DeletePrefix:
			return -1
		case ops[b].DeletePrefix && !ops[a].DeletePrefix:
			return 1
		}
		return a - b
	})
	cover := -1 // the latest prefix delete, in order
	for n, i := range order {
		if n > 0 && ops[order[n-1]].Key == ops[i].Key {
			return overlap(order[n-1], i)
		}
		if cover >= 0 && strings.HasPrefix(ops[i].Key, ops[cover].Key) {
			return overlap(cover, i)
		}
		if ops[i].DeletePrefix {
			cover = i
		}
	}
	return nil
}

func overlap(a, b int) error {
	return fault.New(fault.Invalid, ReasonOpsOverlap, "ops[%d] and ops[%d] touch the same key", min(a, b), max(a, b)).
		At(fmt.Sprintf("ops[%d]", max(a, b)))
}

func checkKey(field, key string) error {
	switch {
	case key == "":
		return fault.New(fault.Invalid, ReasonKeyInvalid, "%s is empty", field).At(field)
	case len(key) > MaxKey:
		return tooLarge("%s holds %d bytes, at most %d are allowed", field, len(key), MaxKey)
	case !utf8.ValidString(key) || strings.IndexByte(key, 0) >= 0:
		// NUL would end etcd's range ends early and hide in every listing.
		return fault.New(fault.Invalid, ReasonKeyInvalid, "%s is not UTF-8 text without NUL", field).At(field)
	}
	return nil
}

func tooLarge(format string, args ...any) error {
	return fault.New(fault.TooLarge, ReasonTooLarge, format, args...)
}
