package raftgroup

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/shared/fault"
)

// Versioned is an optional part of a Machine: a command of a version that some
// member does not know yet is not proposed, or it would stop that member. Called
// from any goroutine.
type Versioned interface {
	// Commands are the versions that this program applies: all members may be taken to know oldest.
	Commands() (oldest, newest uint32)
	// Version is a command's.
	Version(cmd []byte) uint32
}

// Reasons around upgrades.
const (
	ReasonUpgrading = "UPGRADE_UNDER_WAY" // kind Unavailable: a member does not know the command yet
	ReasonSkew      = "VERSION_SKEW"      // kind Conflict: a member's program is more than one minor release away
)

// levels is what members have said of the versions they know.
type levels struct {
	mu    sync.Mutex        // covers the rest
	known map[string]uint32 // by server: one that joins anew says it anew
	heard map[string]heard  // by node: of the latest look at which it answered
}

// heard is what a node's clock said.
type heard struct {
	at    time.Time // by this node's monotonic clock
	ahead time.Duration
	said  bool
}

func (l *levels) learn(around map[string]Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		l.known, l.heard = make(map[string]uint32), make(map[string]heard)
	}
	for name, s := range around {
		l.known[s.Server] = s.Commands
		l.heard[name] = heard{time.Now(), s.Ahead, s.ClockMs != 0}
	}
}

// agree says whether a majority of voters, this node one of them, has clocks within limit of this node's, by what they said
// in the latest looks.
func (l *levels) agree(voters []string, self string, limit, fresh time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, v := range voters {
		h, ok := l.heard[v]
		if v == self || ok && h.said && h.ahead.Abs() <= limit && time.Since(h.at) <= fresh {
			n++
		}
	}
	return 2*n > len(voters)
}

// ClockAgrees says whether a majority of the group's voters has clocks within limit of this node's: for what is done by the
// time of day and cannot be taken back.
func (n *Node) ClockAgrees(limit time.Duration) bool {
	return n.levels.agree(n.voters(), n.cfg.Node, limit, 6*n.cfg.LookEvery)
}

// behind are the members that have not said that they know version.
func (l *levels) behind(version uint32, members []GroupMember, self string) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range members {
		if m.Server != self && l.known[m.Server] < version {
			names = append(names, m.Node)
		}
	}
	slices.Sort(names)
	return names
}

// gate refuses a command that would stop a member. What a member said last counts while it is away.
func (n *Node) gate(cmd []byte) error {
	v, ok := n.machine.(Versioned)
	if !ok {
		return nil
	}
	version := v.Version(cmd)
	oldest, newest := v.Commands()
	if version <= oldest {
		return nil
	}
	behind := n.levels.behind(version, n.Members(), n.member.Server)
	if version > newest {
		behind = append(behind, n.cfg.Node)
	}
	if len(behind) > 0 {
		return fault.New(fault.Unavailable, ReasonUpgrading, "change group %s: it takes commands of version %d when all of its members run a program that knows them: still to be upgraded, or not heard from: %s", n.cfg.Group, version, strings.Join(behind, ", "))
	}
	return nil
}

// minor reads a release's name, v1.4.2; a build without one has no number.
func minor(version string) (major, minor int, ok bool) {
	n, err := fmt.Sscanf(version, "v%d.%d.", &major, &minor)
	return major, minor, err == nil && n == 2
}

// skewed are the others whose program is more than one minor release away.
func skewed(version string, around map[string]Status) (names []string) {
	major, own, ok := minor(version)
	if !ok {
		return nil
	}
	for name, s := range around {
		if m, o, ok := minor(s.Version); ok && (m != major || o > own+1 || o < own-1) {
			names = append(names, name+" "+s.Version)
		}
	}
	slices.Sort(names)
	return names
}

// refuseSkew stops a node that starts too far from the others: it does not judge those that run.
func (n *Node) refuseSkew(around map[string]Status) {
	if names := skewed(n.cfg.Version, around); len(names) > 0 {
		n.fail(fault.New(fault.Conflict, ReasonSkew, "this program is %s, and more than one minor release apart from that of %s: upgrade one release at a time, all nodes of the zone before the next", n.cfg.Version, strings.Join(names, ", ")))
	}
}
