package group_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

func TestRevision_Less(t *testing.T) {
	order := []group.Revision{{}, {Index: 3}, {Epoch: 1}, {Epoch: 1, Index: 1}, {Epoch: 1, Index: 9}, {Epoch: 2}, {Epoch: 2, Index: 1}}
	for i, a := range order {
		for j, b := range order {
			if got := a.Less(b); got != (i < j) {
				t.Errorf("%v less %v: got %v, want %v", a, b, got, i < j)
			}
		}
	}
}

// The neighbours' shortcut of the overlap check agrees with comparing all pairs.
func TestTxn_ValidateOverlap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x group.Txn
		for i := range rapid.IntRange(0, 5).Draw(t, "ops") {
			op := group.Op{Key: rapid.StringMatching(`[ab/]{1,3}`).Draw(t, fmt.Sprint("key", i))}
			switch rapid.IntRange(0, 2).Draw(t, fmt.Sprint("kind", i)) {
			case 1:
				op.Delete = true
			case 2:
				op.DeletePrefix = true
			}
			x.Ops = append(x.Ops, op)
		}
		want := ""
		for i, a := range x.Ops {
			for j, b := range x.Ops {
				if i != j && (a.Key == b.Key || a.DeletePrefix && strings.HasPrefix(b.Key, a.Key)) {
					want = group.ReasonOpsOverlap
				}
			}
		}
		got := ""
		if err := x.Validate(); err != nil {
			got = fault.ReasonOf(err)
		}
		if got != want {
			t.Errorf("validate %+v: got %q, want %q", x.Ops, got, want)
		}
	})
}

// Keys may hold names of customers: no message repeats one.
func TestTxn_ValidateTellsNoKey(t *testing.T) {
	secret := "customer/marker"
	for _, x := range []group.Txn{
		{Ops: []group.Op{{Key: secret}, {Key: secret}}},
		{Ops: []group.Op{{Key: secret + "\x00"}}},
		{Ops: []group.Op{{Key: secret + strings.Repeat("x", group.MaxKey)}}},
		{Ops: []group.Op{{Key: secret, Value: make([]byte, group.MaxValue+1)}}},
		{Ops: []group.Op{{Key: secret, Delete: true, DeletePrefix: true}}},
	} {
		if err := x.Validate(); err == nil || strings.Contains(err.Error(), "marker") {
			t.Errorf("validate: got %v, want an error that tells no key", err)
		}
	}
}
