package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

func attributes() *syscall.SysProcAttr {
	flags := uintptr(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
	out := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 { // an ordinary user is root in a user namespace, where those are allowed
		flags |= syscall.CLONE_NEWUSER
		out.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		out.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out.Cloneflags = flags
	return out
}

// Up turns on the loopback device of a new namespace and makes room for cuts: the rule for local addresses
// moves behind them. Mounts made from now on are seen by this process and its children alone.
func Up() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := configure("lo", netip.Addr{}, 0); err != nil {
		return err
	}
	return errors.Join(rule(unix.RTM_NEWRULE, localPriority, unix.RT_TABLE_LOCAL, unix.FR_ACT_TO_TBL, Cut{}),
		rule(unix.RTM_DELRULE, 0, unix.RT_TABLE_LOCAL, unix.FR_ACT_TO_TBL, Cut{}))
}

// The rule for local addresses, and the first of those for cuts, which are asked before it.
const (
	firstCut      = 1000
	localPriority = 30000
)

var cuts struct {
	sync.Mutex // covers taken
	taken      map[uint32]bool
}

// Make loses the packets of all cuts from now on, until heal is called. It needs Up.
func Make(list ...Cut) (heal func() error, err error) {
	var undo []func() error
	heal = func() error {
		var errs []error
		for _, u := range undo {
			errs = append(errs, u())
		}
		undo = nil
		return errors.Join(errs...)
	}
	for _, c := range list {
		priority := place()
		if err := rule(unix.RTM_NEWRULE, priority, 0, unix.FR_ACT_BLACKHOLE, c); err != nil {
			return nil, errors.Join(err, heal())
		}
		undo = append(undo, func() error {
			cuts.Lock()
			delete(cuts.taken, priority)
			cuts.Unlock()
			return rule(unix.RTM_DELRULE, priority, 0, unix.FR_ACT_BLACKHOLE, c)
		})
	}
	return heal, nil
}

func place() uint32 {
	cuts.Lock()
	defer cuts.Unlock()
	if cuts.taken == nil {
		cuts.taken = map[uint32]bool{}
	}
	n := uint32(firstCut)
	for cuts.taken[n] {
		n++
	}
	cuts.taken[n] = true
	return n
}

// rule adds or removes one IPv4 routing rule over rtnetlink.
func rule(kind uint16, priority uint32, table, action uint8, c Cut) error {
	// struct fib_rule_hdr: family, lengths, tos, table, two reserved, action, flags.
	body := []byte{unix.AF_INET, 0, 0, 0, table, 0, 0, action, 0, 0, 0, 0}
	body = attribute(body, unix.FRA_PRIORITY, binary.NativeEndian.AppendUint32(nil, priority))
	if c.Protocol != 0 {
		body = attribute(body, unix.FRA_IP_PROTO, []byte{uint8(c.Protocol)})
	}
	if c.UID != 0 {
		both := binary.NativeEndian.AppendUint32(nil, uint32(c.UID))
		body = attribute(body, unix.FRA_UID_RANGE, binary.NativeEndian.AppendUint32(both, uint32(c.UID)))
	}
	if c.Port != 0 {
		both := binary.NativeEndian.AppendUint16(nil, uint16(c.Port))
		body = attribute(body, unix.FRA_DPORT_RANGE, binary.NativeEndian.AppendUint16(both, uint16(c.Port)))
	}
	flags := uint16(0)
	if kind == unix.RTM_NEWRULE {
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	if err := talk(kind, flags, body); err != nil {
		return fmt.Errorf("change routing rule %d: %w", priority, err)
	}
	return nil
}

// Disk mounts a file system of a given size in memory, which can be filled.
func Disk(dir string, bytes int) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
		return fmt.Errorf("mount a file system of %d bytes on %s: %w", bytes, dir, err)
	}
	return nil
}
