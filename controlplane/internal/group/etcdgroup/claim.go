package etcdgroup

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Claim is a key of etcd, beside the groups' prefixes, that names who keeps groups there. It is written once and never
// changed, and it is part of every backup that etcd's own tools make.
type Claim struct {
	Key   string
	Value []byte // what this node's side writes
	// Make: the first node writes it. A node that does not waits until another has.
	Make bool
	// Judge is asked before anything else is read or written, at each list: with what the key holds, nil if it is absent,
	// and with the cluster's id. An error ends the node, but for ErrUndecided, after which it is asked again.
	Judge func(found []byte, cluster uint64) error
}

// ErrUndecided is a Judge's word that it lacks what it needs to know, and will have it.
var ErrUndecided = errors.New("not decided yet")

// refused is Judge's word: it ends the node.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

// enter makes sure that the prefix is not another's.
func (s *Store) enter(ctx context.Context) error {
	c := s.cfg.Claim
	if c == nil {
		return nil
	}
	resp, err := s.client.Get(ctx, c.Key)
	if err != nil {
		return err
	}
	var found []byte
	if len(resp.Kvs) > 0 {
		found = resp.Kvs[0].Value
	}
	if err := c.Judge(found, resp.Header.ClusterId); errors.Is(err, ErrUndecided) {
		return err
	} else if err != nil {
		return refused{err}
	}
	switch {
	case found != nil:
		return nil
	case !c.Make:
		return fmt.Errorf("nobody who may keep groups there has opened the prefix yet: key %s is absent", c.Key)
	}
	made, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(c.Key), "=", 0)).
		Then(clientv3.OpPut(c.Key, string(c.Value))).Else(clientv3.OpGet(c.Key)).Commit()
	if err != nil {
		return err // perhaps written: it is read at the next try
	}
	if kvs := made.Responses[0].GetResponseRange().GetKvs(); !made.Succeeded && len(kvs) > 0 { // another was first
		if err := c.Judge(kvs[0].Value, made.Header.ClusterId); err != nil {
			return refused{err}
		}
	}
	return nil
}
