package etcdgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Tell follows what others keep in an etcd below a prefix: told gets all of it, names without the prefix, at first and after
// each change. It writes nothing. It returns when ctx ends (nil), when etcd does not answer any more, or when there are more
// than most keys; whoever wants to go on calls it again.
func Tell(ctx context.Context, cfg Config, prefix string, most int, told func(map[string]string)) error {
	s := &Store{cfg: cfg}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := clientv3.New(s.clientConfig(ctx))
	if err != nil {
		return s.plain(err)
	}
	defer c.Close()
	first, stop := limited(ctx, writeLimit)
	resp, err := c.Get(first, prefix, clientv3.WithPrefix(), clientv3.WithLimit(int64(most)+1))
	stop()
	if err != nil {
		return s.plain(err)
	}
	all := map[string]string{}
	for _, kv := range resp.Kvs {
		all[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	tooMany := func() error {
		if len(all) > most {
			return fmt.Errorf("etcd: more than %d keys below %s", most, prefix)
		}
		return nil
	}
	if err := tooMany(); err != nil {
		return err
	}
	told(maps.Clone(all))
	for w := range c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1)) {
		if err := w.Err(); err != nil {
			return s.plain(err)
		}
		for _, e := range w.Events {
			name := strings.TrimPrefix(string(e.Kv.Key), prefix)
			if e.Type == mvccpb.DELETE {
				delete(all, name)
			} else {
				all[name] = string(e.Kv.Value)
			}
		}
		if err := tooMany(); err != nil {
			return err
		}
		if len(w.Events) > 0 {
			told(maps.Clone(all))
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.New("etcd: the watch ended")
}
