// The design this project grew out of: `@Sse()` for each user, an RxJS Subject per user, one Redis channel that every
// instance listens to. Publishing is durable, as allim's is: XADD to a capped stream and PUBLISH, in one pipeline.
import 'reflect-metadata';
import {
  Body, Controller, HttpCode, Injectable, MessageEvent, Module, OnModuleInit, Param, Post, Sse,
} from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import { Redis } from 'ioredis';
import { finalize, merge, Observable, Subject } from 'rxjs';

const CHANNEL = 'notifications';
const KEPT = 256;
const MAX_BODY_BYTES = 2 * 1024 * 1024; // a batch is 250 kB, and Express takes 100 by itself

interface Publication {
  user: number | null; // null: everyone
  type: string;
  events: object[];
}

@Injectable()
class Notifications implements OnModuleInit {
  private readonly subscriber = new Redis(process.env.REDIS_URL!);
  private readonly publisher = new Redis(process.env.REDIS_URL!);
  private readonly everyone = new Subject<MessageEvent>();
  private readonly users = new Map<number, { subject: Subject<MessageEvent>; streams: number }>();

  async onModuleInit(): Promise<void> {
    this.subscriber.on('message', (_channel, text) => this.dispatch(JSON.parse(text)));
    await this.subscriber.subscribe(CHANNEL);
  }

  stream(user: number): Observable<MessageEvent> {
    const entry = this.users.get(user) ?? { subject: new Subject<MessageEvent>(), streams: 0 };
    entry.streams += 1;
    this.users.set(user, entry);
    const leave = () => {
      entry.streams -= 1;
      if (entry.streams === 0) this.users.delete(user);
    };
    return merge(entry.subject, this.everyone).pipe(finalize(leave));
  }

  async publish({ user, type, events }: Publication): Promise<void> {
    const pipeline = this.publisher.pipeline();
    for (const data of events) {
      pipeline.xadd(`events:${user ?? 'everyone'}`, 'MAXLEN', '~', KEPT, '*', 'data', JSON.stringify(data));
      pipeline.publish(CHANNEL, JSON.stringify({ user, type, data }));
    }
    const failure = (await pipeline.exec())?.find(([error]) => error);
    if (failure) throw failure[0];
  }

  private dispatch({ user, type, data }: { user: number | null; type: string; data: object }): void {
    (user === null ? this.everyone : this.users.get(user)?.subject)?.next({ type, data });
  }
}

@Controller()
class NotificationsController {
  constructor(private readonly notifications: Notifications) {}

  @Sse('events/:user')
  events(@Param('user') user: string): Observable<MessageEvent> {
    return this.notifications.stream(Number(user));
  }

  @Post('publish')
  @HttpCode(202)
  async publish(@Body() publication: Publication): Promise<object> {
    await this.notifications.publish(publication);
    return { accepted: publication.events.length };
  }
}

@Module({ controllers: [NotificationsController], providers: [Notifications] })
class AppModule {}

const adapter = process.env.ADAPTER === 'fastify' ? new FastifyAdapter({ bodyLimit: MAX_BODY_BYTES }) : new ExpressAdapter();
if (adapter instanceof ExpressAdapter) adapter.useBodyParser('json', false, { limit: MAX_BODY_BYTES });
const app = await NestFactory.create(AppModule, adapter, { logger: ['error', 'warn'] });
await app.listen(Number(process.env.PORT), '127.0.0.1');
