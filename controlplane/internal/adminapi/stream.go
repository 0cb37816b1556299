package adminapi

import (
	"fmt"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
)

func webSocketFromProto(v *adminv1.WebSocket, route int) (*model.WebSocket, error) {
	if v == nil {
		return nil, nil
	}
	idle, err := duration(v.GetIdleTimeout(), fmt.Sprintf("spec.routes[%d].websocket.idle_timeout", route))
	if err != nil {
		return nil, err
	}
	ping, err := duration(v.GetPingEvery(), fmt.Sprintf("spec.routes[%d].websocket.ping_every", route))
	if err != nil {
		return nil, err
	}
	return &model.WebSocket{MaxMessageBytes: v.GetMaxMessageBytes(), IdleTimeout: idle, PingEvery: ping}, nil
}

func webSocketToProto(v *model.WebSocket) *adminv1.WebSocket {
	if v == nil {
		return nil
	}
	return &adminv1.WebSocket{MaxMessageBytes: v.MaxMessageBytes, IdleTimeout: showDuration(v.IdleTimeout), PingEvery: showDuration(v.PingEvery)}
}

func tcpFromProto(v *adminv1.TCP) (*model.TCP, error) {
	if v == nil {
		return nil, nil
	}
	idle, err := duration(v.GetIdleTimeout(), "spec.tcp.idle_timeout")
	return &model.TCP{IdleTimeout: idle}, err
}

func tcpToProto(v *model.TCP) *adminv1.TCP {
	if v == nil {
		return nil
	}
	return &adminv1.TCP{IdleTimeout: showDuration(v.IdleTimeout)}
}
