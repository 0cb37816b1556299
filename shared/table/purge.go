package table

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
)

// Purges are what of an API's kept answers has ended, in order. An edge does what is beyond what it did last: what it missed
// while nobody reached it is still here, or folded into All.
type Purges struct {
	API string  `json:"api"`
	All uint64  `json:"all,omitempty"` // everything that was kept before this number
	Of  []Purge `json:"of,omitempty"`  // further ones, their numbers rising
	// Unread is set by an edge that could not read what was here: it keeps nothing of the API.
	Unread bool `json:"-"`
}

// Purge ends answers under one tag, of one URL, or all of them.
type Purge struct {
	Seq  uint64 `json:"seq"`
	What string `json:"what,omitempty"` // PurgeTag or PurgeURL; "": all
	Soft bool   `json:"soft,omitempty"` // they are stale, and not gone
}

// Last is the number of the latest.
func (p *Purges) Last() uint64 {
	if n := len(p.Of); n > 0 {
		return max(p.All, p.Of[n-1].Seq)
	}
	return p.All
}

// Sound says whether the numbers rise.
func (p *Purges) Sound() bool {
	return slices.IsSortedFunc(p.Of, func(a, b Purge) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	}) && (len(p.Of) == 0 || p.Of[0].Seq > p.All)
}

// PurgeTag and PurgeURL are digests: tags and URLs may say more about somebody than a table has to.
func PurgeTag(tag string) string { return purged("tag\n" + tag) }

// PurgeURL is that of a host in lower case without a port, a path without escapes and a query as spelt: a path has many
// spellings, and whoever purges one means all.
func PurgeURL(host, path, query string) string {
	return purged("url\n" + host + "\n" + path + "\n" + query)
}

func purged(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// FoundTargets stands in Protocols for all upstreams that were found: it is no URL.
const FoundTargets = "*"

// Targets are upstreams of one region that an API's zone found, beside those that the API names.
type Targets struct {
	API  string   `json:"api"`
	URLs []string `json:"urls,omitempty"`
}
