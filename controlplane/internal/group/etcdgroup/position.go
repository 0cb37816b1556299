package etcdgroup

import (
	"fmt"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/replica"
)

// position is a state with the head that etcd held beside it. It never changes.
type position struct {
	state replica.State
	head  head
	raw   []byte // the head's bytes; nil: there is none yet
	mod   int64  // etcd's revision of the head, 0 if there is none
	// bulk is the latest transaction while its head says so: it is part of state, and its keys are still to be written.
	bulk []group.Op
}

// step is one transaction that changed something.
type step struct {
	rev    group.Revision
	events []group.Event
}

// fold makes records part of a state, as every node does it, and says what each
// of them did. It reads nothing but its arguments.
func fold(st replica.State, at time.Time, records []record) (replica.State, []step, []replica.Remembered) {
	var steps []step
	results := make([]replica.Remembered, 0, len(records))
	for _, r := range records {
		res := group.Result{Succeeded: r.failed < 0, Failed: r.failed, Time: at}
		if res.Succeeded {
			if tree, events := st.Change(r.ops, at); len(events) > 0 {
				st.Tree = tree
				st.Rev.Index++
				if st.Rev.Epoch == 0 {
					st.Rev.Epoch = firstEpoch(at)
				}
				steps = append(steps, step{st.Rev, events})
			}
		}
		res.Revision = st.Rev
		results = append(results, replica.Remembered{ID: r.id, Result: res})
	}
	return st, steps, results
}

// firstEpoch: a group wiped and made anew does not pass for its predecessor.
func firstEpoch(at time.Time) uint64 { return uint64(max(1, at.Unix())) }

// after is the position that an entry leads to, for whoever stands at p.
func (p *position) after(n entry, mod int64) (*position, []step, []replica.Remembered, error) {
	h, err := decodeHead(n.head)
	if err != nil {
		return nil, nil, nil, err
	}
	next := &position{head: h, raw: n.head, mod: mod}
	st := p.state
	if n.epoch {
		st.Rev = group.Revision{Epoch: h.rev.Epoch, Index: h.rev.Index - 1}
	}
	var steps []step
	var results []replica.Remembered
	next.state, steps, results = fold(st, h.at, n.records)
	if n.epoch {
		next.state.Rev = h.rev // with nothing to change, too
	}
	if next.state.Rev != h.rev || uint64(next.state.Len()) != h.keys {
		return nil, nil, nil, fmt.Errorf("the log leads to revision %s with %d keys, its head says %s with %d", next.state.Rev, next.state.Len(), h.rev, h.keys)
	}
	if h.bulk {
		next.bulk = bulkOps(n.records)
	}
	return next, steps, results, nil
}

func bulkOps(records []record) (ops []group.Op) {
	for _, r := range records {
		if r.failed < 0 {
			ops = append(ops, r.ops...)
		}
	}
	return ops
}
