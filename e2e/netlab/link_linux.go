package netlab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// attribute appends one to a netlink message.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, (4-len(value)%4)%4)...)
}

func number(v int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }

// talk says one thing to the kernel over rtnetlink, in the calling thread's namespace, and hears whether it was done.
func talk(kind, flags uint16, body []byte) error {
	message := number(16 + len(body))
	message = binary.NativeEndian.AppendUint16(message, kind)
	message = binary.NativeEndian.AppendUint16(message, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	message = append(message, make([]byte, 8)...) // sequence and port
	message = append(message, body...)

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("the kernel answers %d bytes", n)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[16:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// link makes a pair of devices: one here, the other, eth0, in the namespace behind fd.
func link(name string, fd int) error {
	info := make([]byte, 16) // struct ifinfomsg
	peer := attribute(append([]byte(nil), info...), unix.IFLA_IFNAME, []byte("eth0\x00"))
	peer = attribute(peer, unix.IFLA_NET_NS_FD, number(fd))
	const vethInfoPeer = 1
	veth := attribute(nil, unix.IFLA_INFO_KIND, []byte("veth"))
	veth = attribute(veth, unix.IFLA_INFO_DATA, attribute(nil, vethInfoPeer, peer))
	body := attribute(info, unix.IFLA_IFNAME, []byte(name+"\x00"))
	body = attribute(body, unix.IFLA_LINKINFO, veth)
	if err := talk(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
		return fmt.Errorf("make the device pair of %s: %w", name, err)
	}
	return nil
}

// configure gives a device of this namespace an address and turns it on. bits 0: the address is left as it is.
func configure(device string, address netip.Addr, bits int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(what uint, fill func(*unix.Ifreq) error) {
		if err != nil {
			return
		}
		request, e := unix.NewIfreq(device)
		if e == nil {
			if e = fill(request); e == nil {
				e = unix.IoctlIfreq(fd, what, request)
			}
		}
		if e != nil {
			err = fmt.Errorf("configure %s: %w", device, e)
		}
	}
	if bits > 0 {
		set(unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(address.AsSlice()) })
		set(unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(net.CIDRMask(bits, 32)) })
	}
	set(unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil })
	return err
}

// route adds a route to everything: over a gateway, or out of a device where gateway is not valid.
func route(table uint8, gateway netip.Addr, device string) error {
	// struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
	scope := uint8(unix.RT_SCOPE_UNIVERSE)
	if !gateway.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	body := append([]byte{unix.AF_INET, 0, 0, 0, table, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST}, make([]byte, 4)...)
	if gateway.IsValid() {
		body = attribute(body, unix.RTA_GATEWAY, gateway.AsSlice())
	} else {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		body = attribute(body, unix.RTA_OIF, number(i.Index))
	}
	if err := talk(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
		return fmt.Errorf("add a default route to table %d: %w", table, err)
	}
	return nil
}

// choose adds or removes a rule that packets of a flow, or those that come in by a device, ask a table.
func choose(kind uint16, priority uint32, table uint8, flow Flow, device string) error {
	// struct fib_rule_hdr: family, lengths of destination and source, tos, table, two reserved, action, flags.
	body := []byte{unix.AF_INET, 0, 0, 0, table, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
	body = attribute(body, unix.FRA_PRIORITY, number(int(priority)))
	if device != "" {
		body = attribute(body, unix.FRA_IIFNAME, []byte(device+"\x00"))
	} else {
		body[1], body[2] = uint8(flow.To.Bits()), uint8(flow.From.Bits())
		body = attribute(body, unix.FRA_DST, flow.To.Addr().AsSlice())
		body = attribute(body, unix.FRA_SRC, flow.From.Addr().AsSlice())
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
