package etcdgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"bailiwick/controlplane/internal/group"
)

// rewound is how many commits before the last one it remembers a node begins: who follows the store may have been behind it
// when both ended.
const rewound = 1024

// rewind is the listing at which a node that starts begins, before etcd's present: it then follows the log from there, so
// that watches are told what was committed while the node stood still, or in the moment of its end. Else what all nodes of
// a group missed at once, in a restart of all, nobody would ever tell. It goes back as far as etcd's history reaches, at most
// to what the window of events could hold.
func (s *Store) rewind(ctx context.Context, l *listing) (*listing, error) {
	seen, ok := s.recall()
	if !ok || l.pos.raw == nil {
		return l, nil
	}
	less := func(a, b uint64) uint64 { return a - min(a, b) }
	want := max(less(seen.serial, rewound), less(l.pos.head.serial, group.RememberedEvents))
	best, high, _, err := s.headUpTo(ctx, l.pos.mod, want)
	if err != nil {
		return nil, err
	}
	if best == 0 {
		best = high // the oldest
	}
	if best >= l.pos.mod {
		return l, nil
	}
	return s.list(ctx, best)
}

// headUpTo finds below etcd's revision end the latest whose head's serial is at most want; serials never decrease. best is 0
// if etcd remembers none, and high then the oldest it remembers.
func (s *Store) headUpTo(ctx context.Context, end int64, want uint64) (best, high int64, found head, err error) {
	low, high := int64(0), end // low is too old or good, high is later than wanted
	for high-low > 1 {
		mid := low + (high-low)/2
		resp, err := s.client.Get(ctx, s.keyHead(), clientv3.WithRev(mid))
		switch {
		case errors.Is(err, rpctypes.ErrCompacted) || err == nil && len(resp.Kvs) == 0:
			low = mid
		case err != nil:
			return 0, 0, head{}, err
		default:
			h, err := decodeHead(resp.Kvs[0].Value)
			if err != nil {
				return 0, 0, head{}, err
			}
			if h.serial <= want {
				low, best, found = mid, mid, h
			} else {
				high = mid
			}
		}
	}
	return best, high, found, nil
}

// strayed says why what etcd holds does not follow from what this node has seen although it is longer: etcd was set back and
// others, who knew of less, went on. "" if it does follow, or if etcd remembers too little to tell.
func (s *Store) strayed(ctx context.Context, known *position, l *listing) (string, error) {
	if known != nil {
		if known.raw == nil || known.head.rev.Epoch != l.pos.head.rev.Epoch || known.mod >= l.pos.mod {
			return "", nil
		}
		resp, err := s.client.Get(ctx, s.keyHead(), clientv3.WithRev(known.mod))
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			return "", nil
		case err != nil:
			return "", err
		case len(resp.Kvs) == 0 || !bytes.Equal(resp.Kvs[0].Value, known.raw):
			return fmt.Sprintf("commit %d of revision %s, which this node has seen, is not in etcd's history", known.head.serial, known.head.rev), nil
		}
		return "", nil
	}
	seen, ok := s.recall()
	if !ok || seen.rev.Epoch != l.pos.head.rev.Epoch || seen.serial >= l.pos.head.serial {
		return "", nil
	}
	best, _, found, err := s.headUpTo(ctx, l.pos.mod, seen.serial)
	if err == nil && best > 0 && (found.serial != seen.serial || found.nonce != seen.nonce) {
		return fmt.Sprintf("commit %d of revision %s, which this node remembers, is not in etcd's history", seen.serial, seen.rev), nil
	}
	return "", err
}
