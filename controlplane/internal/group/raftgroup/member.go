package raftgroup

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// Member is what a node is in its group. It rests in the group's log file, so
// that it is replaced in one transaction with the log it belongs to.
type Member struct {
	// Server is the node's id in the group's configuration: its name for members
	// since birth, another for one that joined later, so that a disk which was
	// lost or set aside cannot come back for the node that took its place.
	Server string `json:"server"`
	// Incarnation is 0 since the group's birth and the seconds of its latest
	// recovery after one. Members of different incarnations do not connect.
	Incarnation uint64 `json:"incarnation"`
	// Since is when it became that; zero for members since birth.
	Since time.Time `json:"since,omitzero"`
}

// wire is the name under which the members of one incarnation meet.
func wire(group string, incarnation uint64) string {
	if incarnation == 0 {
		return group
	}
	return fmt.Sprintf("%s@%d", group, incarnation)
}

var memberKey = []byte("member") // in metaBucket

// formatMember is the format of a file with a member record: a program that
// does not know the record would take the node for a member since birth.
const formatMember = 2

// Member is the node's record, ok false if it has none.
func (d *boltDisk) Member() (m Member, ok bool, err error) {
	err = d.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(metaBucket)
		if b == nil {
			return nil
		}
		rec := b.Get(memberKey)
		if rec == nil {
			return nil
		}
		text, err := d.openStable(memberKey, rec)
		if err != nil {
			return err
		}
		ok = true
		return json.Unmarshal(text, &m)
	})
	if err == nil && ok && m.Server == "" {
		err = corrupt(d.path, 0, "its member record names no server")
	}
	return m, ok, err
}

func putMember(tx *bolt.Tx, m Member) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	meta := tx.Bucket(metaBucket)
	return errors.Join(meta.Put(memberKey, sealStable(memberKey, text)), meta.Put(formatKey, []byte{formatMember}))
}

// reopen appends entries to the log in a term of their own and makes the file
// m's, all or nothing. The term is above every term that the file knows, and the
// entries count as committed: they begin with the configuration of which this
// node is the only member.
func (d *boltDisk) reopen(m Member, entries []*raft.Log) error {
	return d.db.Update(func(tx *bolt.Tx) error {
		if k, _ := tx.Bucket(logBucket).Cursor().Last(); k != nil && binary.BigEndian.Uint64(k)+1 != entries[0].Index {
			// Older than the newest snapshot, where New would drop it as well.
			if err := tx.DeleteBucket(logBucket); err != nil {
				return err
			}
			if _, err := tx.CreateBucket(logBucket); err != nil {
				return err
			}
		}
		log, stable := tx.Bucket(logBucket), tx.Bucket(stableBucket)
		for _, l := range entries {
			if err := log.Put(indexKey(l.Index), encodeLog(l)); err != nil {
				return err
			}
		}
		last := entries[len(entries)-1]
		for _, v := range []struct {
			key   []byte
			value uint64
		}{{termKey, last.Term}, {commitKey, last.Index}} {
			if err := stable.Put(v.key, sealStable(v.key, be64(v.value))); err != nil {
				return err
			}
		}
		return putMember(tx, m)
	})
}
