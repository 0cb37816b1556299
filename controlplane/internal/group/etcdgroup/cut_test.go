package etcdgroup

import "testing"

// A node that was cut off while what it missed was compacted lists again and goes on.
func TestFollow_AfterACutAndACompaction(t *testing.T) {
	t.Parallel()
	c := newEtcd(t, 1)
	stores, own := c.three("p/")
	put(t, stores[0], "a", "1")
	w, err := stores[0].Watch(2, "")
	if err != nil {
		t.Fatal(err)
	}
	own.set(true)
	for range 12 {
		put(t, stores[1], "a", "2")
	}
	c.compact(c.raw())
	own.set(false)
	if events, rev, err := w.Next(short(t)); err == nil && events[0].Index != 2 {
		t.Errorf("next: got index %d up to %v, want 2 or COMPACTED", events[0].Index, rev)
	}
	wantValue(t, stores[0], "a", "2")
	r := put(t, stores[2], "b", "1")
	if err := stores[0].WaitFor(short(t), r.Revision.Index); err != nil {
		t.Error(err)
	}
}
