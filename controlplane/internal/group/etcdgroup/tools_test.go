package etcdgroup

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"bailiwick/controlplane/internal/group"
)

// saved is etcdctl snapshot save, at one member.
func (c *cluster) saved() string {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "snapshot.db")
	cfg := (&Store{cfg: Config{Endpoints: []string{c.members[0].client}}}).clientConfig(short(c.t))
	if _, err := snapshot.NewV3(zap.NewNop()).Save(short(c.t), cfg, file); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// putBack is etcdutl snapshot restore on every member, in the place of what they had.
func (c *cluster) putBack(file, token string, bump uint64) {
	c.t.Helper()
	for _, m := range c.members {
		c.kill(m)
	}
	c.token = token
	for _, m := range c.members {
		if err := os.RemoveAll(m.dir); err != nil {
			c.t.Fatal(err)
		}
		cfg := c.config(m)
		urls := []string{}
		for _, u := range cfg.AdvertisePeerUrls {
			urls = append(urls, (&url.URL{Scheme: u.Scheme, Host: u.Host}).String())
		}
		err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{SnapshotPath: file, Name: m.name, OutputDataDir: m.dir, PeerURLs: urls,
			InitialCluster: cfg.InitialCluster, InitialClusterToken: token, RevisionBump: bump, MarkCompacted: bump > 0})
		if err != nil {
			c.t.Fatal(err)
		}
	}
	c.startAll()
}

// A snapshot that etcd's own tools put back begins a new epoch, also where they raise etcd's revisions so that none goes back.
// With what it began is told to those who follow the store, by nodes that ran and by those that start later.
func TestRestore_ByEtcdsOwnTools(t *testing.T) {
	t.Parallel()
	for name, bump := range map[string]uint64{"plain": 0, "bumped and marked as compacted": 1_000_000} {
		t.Run(name, func(t *testing.T) {
			c := newEtcd(t, 1)
			seen := filepath.Join(t.TempDir(), "seen")
			with := func(cfg *Config) {
				cfg.Seen = seen
				cfg.Restored = func(Restored) ([]group.Op, error) {
					return []group.Op{{Key: "record", Value: []byte("restored")}}, nil
				}
			}
			s, end := c.node("n1", "p/", with)
			kept := put(t, s, "kept", "1")
			file := c.saved()
			lost := put(t, s, "lost", "1")
			end()
			c.putBack(file, "again", bump)
			for i := range 3 {
				s, end := c.node("n1", "p/", with)
				if _, ok, rev, err := s.Get(short(t), "lost"); ok || err != nil || rev.Epoch <= lost.Revision.Epoch || rev.Index != kept.Revision.Index+1 {
					t.Errorf("start %d: got lost: %v at %v, %v, want it gone, and one transaction of a new epoch after %v", i, ok, rev, err, kept.Revision)
				}
				w, err := s.Watch(kept.Revision.Index+1, "")
				if err != nil {
					t.Fatalf("start %d: %v, want to be told of what the epoch began with", i, err)
				}
				events, rev, err := w.Next(short(t))
				if err != nil || len(events) != 1 || events[0].KV.Key != "record" || rev.Epoch <= lost.Revision.Epoch {
					t.Errorf("start %d: told %+v at %v, %v, want what the epoch began with", i, events, rev, err)
				}
				w.Close()
				end()
			}
		})
	}
}
