package etcdgroup

import (
	"context"
	"errors"

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
	// The latest revision of etcd whose head is at most want, or the oldest there is: serials never decrease.
	low, high := int64(0), l.pos.mod // low is too old or good, high is later than wanted
	best := int64(0)
	for high-low > 1 {
		mid := low + (high-low)/2
		resp, err := s.client.Get(ctx, s.keyHead(), clientv3.WithRev(mid))
		switch {
		case errors.Is(err, rpctypes.ErrCompacted) || err == nil && len(resp.Kvs) == 0:
			low = mid
		case err != nil:
			return nil, err
		default:
			h, err := decodeHead(resp.Kvs[0].Value)
			if err != nil {
				return nil, err
			}
			if h.serial <= want {
				low, best = mid, mid
			} else {
				high = mid
			}
		}
	}
	if best == 0 {
		best = high // the oldest
	}
	if best >= l.pos.mod {
		return l, nil
	}
	return s.list(ctx, best)
}
